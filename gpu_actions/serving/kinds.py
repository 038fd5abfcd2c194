"""Settings whose type depends on a name in them: `driver = "process"` selects the settings of one kind of unit."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


def check_kind(value: str, known: Iterable[str]) -> str:
    """Return `value` if it is known. Raises ValueError that lists the known names and suggests the nearest one."""
    names = tuple(known)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"{value!r} is not known; {hint}known: {', '.join(names)}")


class OneOf:
    """An annotation for pydantic: the field is one of `models`, selected by the name in its field `key`.

    Without a name the field is `default`, or an error if there is none. Used as `Annotated[UnitConfig, OneOf(...)]`.
    """

    def __init__(
        self, key: str, models: Iterable[type[BaseModel]], *, default: type[BaseModel] | None = None
    ) -> None:
        self.key = key
        self.models = {str(model.model_fields[key].default): model for model in models}
        self.default = None if default is None else str(default.model_fields[key].default)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(model) for name, model in self.models.items()}
        union = core_schema.tagged_union_schema(choices, discriminator=self._name_in)
        return core_schema.no_info_before_validator_function(self._check, union)

    def _name_in(self, value: Any) -> Any:
        name = value.get(self.key) if isinstance(value, Mapping) else getattr(value, self.key, None)
        return self.default if name is None else name

    def _check(self, value: Any) -> Any:
        name = self._name_in(value)
        if name is None and isinstance(value, Mapping):
            raise ValueError(f"{self.key} is missing; set it to one of: {', '.join(self.models)}")
        if name is not None:
            check_kind(name, self.models)
        return value
