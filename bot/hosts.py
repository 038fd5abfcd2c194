"""The hosts of the settings, each built with its drivers when it is first used."""

import difflib
from collections.abc import Iterable, Mapping

from pydantic import Field

from bot.settings.model import Settings
from bot.store.records import UserError
from gpu_actions.host import Host, build_host
from gpu_actions.models import Frozen, JsonObject

AWAY_AFTER_S = 20.0
"""A worker of a fleet leaves a sign of life every 5 s."""


class WorkerSign(Frozen):
    """What a worker last said of itself. `age_s` is None if it never did."""

    age_s: float | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    body: JsonObject = Field(default_factory=dict)


class Hosts:
    """Finds and builds hosts. `built` may bring hosts that are built already (tests)."""

    def __init__(self, settings: Settings, built: Mapping[str, Host] | None = None) -> None:
        self._settings = settings
        self._built = dict(built or {})

    def names(self) -> tuple[str, ...]:
        """Return the names of all hosts."""
        return tuple(host.name for host in self._settings.hosts)

    def default(self) -> str:
        """Return the host that is meant where none is named. Raise UserError if there is no such host."""
        if not self._settings.hosts:
            raise UserError(
                "These are the settings of a fleet's bot, which serves nothing itself: ask on the host."
            )
        return self._settings.default_host.name

    def name(self, name: str | None) -> str:
        """Return the name of a known host, or of the default host for None. Raise UserError for an unknown one."""
        if name is None:
            return self.default()
        if name not in self.names():
            raise UserError(f"I know no host {name!r};{did_you_mean(name, self.names())}.")
        return name

    def sign(self, name: str) -> WorkerSign | None:
        """Return the last sign of life of a host's worker, or None where the worker shares this machine."""
        return None

    def known_age_s(self) -> float:
        """Return the age of what is known of the workers; it grows while a fleet's database does not answer."""
        return 0.0

    def get(self, name: str) -> Host:
        """Return a host with its drivers. Creates its state folder and starts nothing. Raise UserError for an unknown one."""
        if name not in self._built:
            config = self._settings.host(self.name(name))
            assert config is not None  # noqa: S101  (name() has raised for an unknown host)
            self._built[name] = build_host(
                config,
                state_dir=self._settings.host_dir(name),
                thresholds=self._settings.triage,
                baselines_dir=self._settings.state_dir / "baselines",
            )
        return self._built[name]


def did_you_mean(word: str, known: Iterable[str], noun: str = "there are") -> str:
    """Return the end of a sentence that suggests the nearest known word and lists them all."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    hint = f" did you mean {close[0]}?" if close else ""
    return f"{hint} {noun}: {', '.join(names) or 'none'}"
