"""The enrolled hosts of a fleet, as the database said last."""

import time

from bot.fleet.postbox import Enrolled
from bot.hosts import Hosts, WorkerSign
from bot.settings.model import Settings
from bot.store.records import UserError
from gpu_actions.host import Host


class FleetHosts(Hosts):
    """The enrolled hosts, as the database said last. Their drivers are on the hosts."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.enrolled: dict[str, Enrolled] = {}
        self.read_at = 0.0
        """When the database last answered, monotonic; 0: never."""

    def learn(self, found: list[Enrolled]) -> None:
        """Take what the database says."""
        self.enrolled = {one.name: one for one in found}
        self.read_at = time.monotonic()

    def names(self) -> tuple[str, ...]:
        return tuple(self.enrolled)

    def default(self) -> str:
        """Return the only host. Raise UserError if there are none or several: a change must not go to a guessed host."""
        names = self.names()
        if not names:
            raise UserError("No host is enrolled yet: run `gpu-oncall fleet add HOST` on the bot's machine.")
        if len(names) > 1:
            raise UserError(f"Say which host: {', '.join(names)}.")
        return names[0]

    def known_age_s(self) -> float:
        return time.monotonic() - self.read_at

    def get(self, name: str) -> Host:
        raise UserError(f"{self.name(name)} is read by its own worker, not from here.")

    def sign(self, name: str) -> WorkerSign:
        one = self.enrolled[name]
        age_s = None if one.age_s is None else one.age_s + time.monotonic() - self.read_at
        return WorkerSign(age_s=age_s, labels=one.labels, body=one.sign or {})
