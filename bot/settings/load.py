"""Load the settings: a TOML file, then `.env` over it, then environment variables over both.

A wrong value is reported with its field, its value, where it comes from and what is allowed. Secrets are never printed.
"""

import os
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from bot.settings.model import ENV_PREFIX, Settings
from gpu_actions.config.host import HostConfig, TierConfig
from gpu_actions.serving.kinds import OneOf
from gpu_actions.system.redact import redact

CONFIG_VARIABLE = "GPU_ONCALL_CONFIG"
SEARCH_PATH = (Path("gpu-oncall.toml"), Path("/etc/gpu-oncall/gpu-oncall.toml"))
SECRET_WORDS = ("token", "secret", "password", "api_key")
FIELDS_OF_SEVERAL_KINDS = {
    name
    for model in (HostConfig, TierConfig)
    for name, field in model.model_fields.items()
    if any(isinstance(item, OneOf) for item in field.metadata)
}
"""Behind these, pydantic inserts the name of the kind into the location of an error."""


class SettingsError(Exception):
    """The settings cannot be used. `problems` has one line per wrong field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def load_settings(config: Path | None = None, *, env_file: Path | None = Path(".env")) -> Settings:
    """Read and validate the settings. Raise SettingsError with one line per problem."""
    path = config or _find_config()
    from_file: dict[str, Any] = {}
    if path is not None:
        try:
            from_file = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            problem = f"{path}: cannot be read ({error.strerror}); name another file with --config"
            raise SettingsError([problem]) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError([f"{path}: is not TOML: {error}"]) from None
    try:
        return Settings(_env_file=env_file, **from_file)
    except ValidationError as error:
        problems = [_explain(details, path, from_file, env_file) for details in _causes(error.errors())]
        raise SettingsError(problems) from None


def _find_config() -> Path | None:
    if named := os.environ.get(CONFIG_VARIABLE):
        return Path(named)
    return next((path for path in SEARCH_PATH if path.is_file()), None)


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Leave out that a list is too short if that is so only because its items are wrong."""
    items = {error["loc"][:length] for error in errors for length in range(len(error["loc"]))}
    return [error for error in errors if error["type"] != "too_short" or error["loc"] not in items]


def _explain(
    details: ErrorDetails, path: Path | None, from_file: Mapping[str, Any], env_file: Path | None
) -> str:
    full = details["loc"]
    location = [
        *full[:1],
        *(part for before, part in pairwise(full) if before not in FIELDS_OF_SEVERAL_KINDS),
    ]
    field = ".".join(str(part) for part in location) or "settings"
    if details["type"] == "missing":
        file = str(path) if path is not None else "gpu-oncall.toml (see docs/settings.md for an example)"
        variable = ENV_PREFIX + field.upper().replace(".", "__")
        return f"{field}: is missing; set it in {file} or as {variable}"
    source = _source(location, path, from_file, env_file)
    if details["type"] == "extra_forbidden":
        return f"{field}: is not a known setting (in {source}); check the spelling"
    secret = any(word in field.lower() for word in SECRET_WORDS)
    value = "(secret)" if secret else _short(details["input"])
    return f"{field} = {value}: {details['msg'].removeprefix('Value error, ')} (from {source})"


def _short(value: object) -> str:
    """Return a value for a message, without tables and whatever else looks like a secret."""
    if isinstance(value, dict):
        return "{...}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict) for item in value):
        return f"{len(value)} tables"
    text = redact(repr(value)).text
    return text if len(text) <= 80 else text[:77] + "..."


def _source(
    location: list[int | str], path: Path | None, from_file: Mapping[str, Any], env_file: Path | None
) -> str:
    """Return where the value of a field comes from: an environment variable, `.env`, the file, or the defaults.

    A variable may set the field itself or, as JSON, one of the tables around it.
    """
    variables = [
        ENV_PREFIX + "__".join(str(part) for part in location[:length]).upper()
        for length in range(len(location), 0, -1)
    ]
    environment = {name.upper(): name for name in os.environ}
    for variable in variables:
        if variable in environment:
            return f"the environment variable {environment[variable]}"
    if env_file is not None and env_file.is_file():
        lines = env_file.read_text(encoding="utf-8").splitlines()
        keys = {line.split("=", 1)[0].strip().upper() for line in lines}
        for variable in variables:
            if variable in keys:
                return f"{variable} in {env_file}"
    return str(path) if path is not None and location and location[0] in from_file else "the defaults"
