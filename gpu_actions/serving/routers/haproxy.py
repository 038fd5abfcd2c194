"""HAProxy as a kind of router: its settings, its two drivers and its set-up checks."""

import shutil
from pathlib import Path

from gpu_actions.serving.interfaces import Router
from gpu_actions.serving.routers.base import RoutedHost
from gpu_actions.serving.routers.haproxy_config import HaproxySettings
from gpu_actions.serving.routers.haproxy_managed import ManagedRouter
from gpu_actions.serving.routers.haproxy_router import ExistingRouter
from gpu_actions.serving.setup_checks import SetupCheck, failed, ok
from gpu_actions.system.processes import run_process


class HaproxyConfig(HaproxySettings):
    """HAProxy 2.6 or newer, driven through its admin socket."""

    show_servers = "`show stat` on the router's admin socket"
    show_sessions = "`show sess` on the router's admin socket"

    def describe_drain(self, server: str) -> str:
        return f"set server {self.backend}/{server} state drain"

    @classmethod
    def reader(cls, address: str, *, backend: str) -> Router:
        config = cls(managed=False, socket=Path(address), backend=backend)
        return ExistingRouter(config, servers=(), state_dir=Path())

    def build(self, host: RoutedHost, *, state_dir: Path) -> Router:
        """Return our own instance, with its files in `state_dir`, or an existing one by its admin socket."""
        if self.managed:
            return ManagedRouter(host, self, state_dir=state_dir)
        return ExistingRouter(
            self, servers=[tier.server for tier in host.every_tier.values()], state_dir=state_dir
        )

    async def setup_checks(self, name: str) -> list[SetupCheck]:
        if not self.managed:
            return []
        if shutil.which(self.binary) is None:
            return [failed(name, f"{self.binary} is not on this machine", "apt-get install haproxy")]
        version = await run_process([self.binary, "-v"], timeout_s=10)
        return [ok(f"{name}.binary", version.stdout.splitlines()[0] if version.stdout else self.binary)]
