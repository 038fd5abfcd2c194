"""The reference of all settings as Markdown, made from the models themselves so that it cannot go stale."""

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bot.settings.model import ENV_PREFIX, Settings
from gpu_actions.serving.kinds import OneOf

HEAD = f"""\
# Settings

Written by `make docs` from the models; a test keeps it in step. A TOML file is read first (`--config`, `GPU_ONCALL_CONFIG`,
`./gpu-oncall.toml`, `/etc/gpu-oncall/gpu-oncall.toml`), then `.env`, then environment variables named
`{ENV_PREFIX}` plus the path
joined by `__` (`{ENV_PREFIX}SLACK__BOT_TOKEN`); the later wins. A wrong value stops the start and is named
with its field, its value,
where it came from and what is allowed. An example: [deploy/gpu-oncall.example.toml](../deploy/gpu-oncall.example.toml).
"""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _kinds_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the models of a field that takes one of several kinds (a unit, a router)."""
    return [model for item in field.metadata if isinstance(item, OneOf) for model in item.models.values()]


def _type_name(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return "none"
    if origin is typing.Literal:
        return " \\| ".join(f"`{argument}`" for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(dict.fromkeys(_type_name(argument) for argument in arguments))
    if origin is typing.Annotated:
        return _type_name(arguments[0])
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return f"table of {_type_name(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {
        "str": "text",
        "float": "number",
        "int": "whole number",
        "bool": "true/false",
        "SecretStr": "secret",
    }
    return names.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if isinstance(value, dict):
        return "" if any(isinstance(item, BaseModel) for item in value.values()) else f"`{value}`"
    if hasattr(value, "get_secret_value"):
        return "empty"
    text = (
        f"{value:g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)
    )
    return f"`{text}`" if text else "empty"


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    parts = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join(parts)


def _table(model: type[BaseModel]) -> list[str]:
    lines = ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = (field.description or "").replace("|", "\\|")
        kinds = " \\| ".join(_type_name(kind) for kind in _kinds_of(field))
        row = (f"`{name}`", kinds or _type_name(field.annotation), _default(field), _limits(field), meaning)
        lines.append("| " + " | ".join(row) + " |")
    return lines


def settings_markdown() -> str:
    """The whole document."""
    lines = [HEAD]
    queue: list[type[BaseModel]] = [Settings]
    seen: set[type[BaseModel]] = set()
    while queue:
        model = queue.pop(0)
        if model in seen:
            continue
        seen.add(model)
        lines += [
            f"## {model.__name__}",
            "",
            (model.__doc__ or "").strip().replace("\n    ", "\n"),
            "",
            *_table(model),
            "",
        ]
        for field in model.model_fields.values():
            queue += _kinds_of(field) or _models_in(field.annotation)
    return "\n".join(lines)
