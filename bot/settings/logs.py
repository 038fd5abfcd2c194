"""Logging of the bot: structured lines on stderr, without secrets."""

import logging
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from bot.settings.model import Settings
from gpu_actions.system.redact import redact, redact_data


def configure_logging(settings: Settings, *, process: str = "") -> None:
    """Write structured logs to stderr, and warnings of the libraries. Each line names `process` if it is given."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            *([lambda _logger, _method, event: {**event, "process": process}] if process else []),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
    handler = logging.StreamHandler()
    handler.setFormatter(_RedactingFormatter(logging.BASIC_FORMAT))
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler])


class _RedactingFormatter(logging.Formatter):
    """Formats the lines of libraries, which may quote a request with its token or a database's URL."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record)).text


def _redact_event(_logger: Any, _method: str, event: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: redact_data(_plain(value), name=name) for name, value in event.items()}


def _plain(value: Any) -> Any:
    """Return what the renderers would print of a value, so that nothing is printed that was not redacted."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    return repr(value)
