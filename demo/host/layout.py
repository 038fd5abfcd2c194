"""The demonstration's folder, ports and tokens, and the settings file that describes its host.

The file is an ordinary gpu-oncall settings file, so what works in the demonstration can be read and copied.
"""

import contextlib
import random
import secrets
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from demo.traffic.schedule import Profile
from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically

FREE_RANGE = range(26_000, 32_000)
DEFAULT_STATE_DIR = Path("var/demo")


class Ports(Frozen):
    """Loopback ports of the demonstration. The first three are the product's default addresses."""

    router: int = 8000
    workspace: int = 8800
    web: int = 8801
    tp: int = 8101
    fallback: int = 8102
    panel: int = 8802


class Layout(Frozen):
    """One demonstration: its folder, its ports and the tokens of its workspace."""

    state_dir: Path
    ports: Ports
    bot_token: str
    app_token: str

    @property
    def config_path(self) -> Path:
        return self.state_dir / "gpu-oncall.toml"

    @property
    def path(self) -> Path:
        return self.state_dir / "demo.json"

    @property
    def workspace_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.workspace}"

    @property
    def panel_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.panel}/panel"

    @property
    def router_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.router}"


def new_layout(state_dir: Path, *, free_ports: bool = False) -> Layout:
    """Return a layout with new tokens. `free_ports` takes random free ports."""
    layout = Layout(
        state_dir=state_dir.absolute(),
        ports=Ports(),
        bot_token=f"xoxb-demo-{secrets.token_hex(8)}",
        app_token=f"xapp-demo-{secrets.token_hex(8)}",
    )
    return with_free_ports(layout, Ports.model_fields) if free_ports else layout


def with_free_ports(layout: Layout, names: Iterable[str]) -> Layout:
    """Return the layout with free ports for these names."""
    ports = layout.ports.model_copy(update=dict(zip(names, _free_ports(), strict=False)))
    return layout.model_copy(update={"ports": ports})


def _free_ports() -> Iterator[int]:
    """Yield free ports below the kernel's range for outgoing connections (from 32768), which could take one meanwhile."""
    for port in random.sample(FREE_RANGE, len(FREE_RANGE)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            yield port


def busy_ports(layout: Layout) -> dict[str, int]:
    """Return the ports of the layout that are taken, by name."""
    busy = {}
    for name, port in layout.ports.model_dump().items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                busy[name] = port
    return busy


CONFIG = """\
# Written by `gpu-oncall demo`: a serving host made of real parts, small enough for two CPU cores.
state_dir = "{state_dir}/bot"

[slack]
bot_token = "{bot_token}"
app_token = "{app_token}"
api_url = "http://127.0.0.1:{workspace}/api/"
incident_channel = "incidents"
edit_interval_s = 0.5
edits_per_minute = 300

[access.roles]
responder = ["@oncall-engineers"]
approver = ["@incident-leads"]
override = ["@incident-leads"]

[access.approvals.restore]
approvals = 1
approvers = "approver"
expires_s = 1800

[web]
port = {web}

[monitors]
enabled = {monitors}

[drills]
cron = "{drill_cron}"
clock_speed = {drill_speed:g}

[[hosts]]
name = "demo"
description = "two ranks of the reference engine on this machine's CPU"
gpus = 0
ras_address = ""

[hosts.router]
url = "http://127.0.0.1:{router}"

[hosts.tiers.tp]
server = "tp"
gpus = 0
ranks = 2
engine = {{ kind = "reference", url = "http://127.0.0.1:{tp}", model = "demo", ready_timeout_s = 120 }}
[hosts.tiers.tp.unit]
driver = "process"
argv = ["{{python}}", "-m", "demo.engine", "--port", "{tp}", "--model-name", "demo", \
"--tensor-parallel-size", "2", "--max-num-seqs", "96", "--slow-ms", "{step_ms:g}", "--shutdown-timeout", "20", \
"--profiler-dir", "{state_dir}/profiles/tp"]
stop_grace_s = 25

[hosts.tiers.fallback]
server = "fallback"
gpus = 0
ranks = 1
engine = {{ kind = "reference", url = "http://127.0.0.1:{fallback}", model = "demo", ready_timeout_s = 120 }}
[hosts.tiers.fallback.unit]
driver = "process"
argv = ["{{python}}", "-m", "demo.engine", "--port", "{fallback}", "--model-name", "demo", \
"--max-num-seqs", "16", "--slow-ms", "{step_ms:g}", "--queue-timeout-s", "5", "--shutdown-timeout", "20", \
"--profiler-dir", "{state_dir}/profiles/fallback"]
stop_grace_s = 25

[hosts.fallback]
drain_timeout_s = 20
min_free_disk_gib = 0.2
validate_load = {{ duration_s = {validate_s}, target_qps = 3 }}

[hosts.drill]
max_load_per_core = 1000
min_free_memory_gib = 0.5

[hosts.restore]
hold_s = {hold_s}
min_requests_per_stage = 2
keep_fallback_warm_s = {hold_s}
load = {{ duration_s = {validate_s}, target_qps = 3 }}
"""


class Pace(Frozen):
    """Duration of load tests and traffic stages, and the visitors. The default is for watching, `QUICK` for tests and people
    in a hurry."""

    validate_s: float = 20
    hold_s: float = 10
    step_ms: float = Field(
        default=100, description="added to each step of both engines, so that answers take seconds"
    )
    drill_cron: str = Field(default="", description="drills by schedule; empty: none")
    drill_speed: float = Field(default=1, description="how much faster the clock of the schedule runs")
    traffic: Profile = Field(
        default=Profile(requests_per_s=4, answer_tokens=(40, 100)),
        description="some 60 answers of 5 to 20 s at once (83 were counted on two cores); the fallback can take a third",
    )


QUICK = Pace(
    validate_s=4,
    hold_s=2,
    step_ms=0,
    traffic=Profile(requests_per_s=1, answer_tokens=(4, 12), patience_s=20),
)


DRILLS = {"drill_cron": "0 10 * * 2", "drill_speed": 1680}
"""Every Tuesday at ten, on a clock whose week is six minutes long: two fault kinds take four on two busy cores."""


def write_config(layout: Layout, *, pace: Pace = Pace(), monitors: bool = True) -> Path:  # noqa: B008  (frozen)
    """Write the settings file of the demonstration (mode 0600: it holds the workspace's tokens)."""
    text = CONFIG.format(
        state_dir=layout.state_dir,
        bot_token=layout.bot_token,
        app_token=layout.app_token,
        monitors=str(monitors).lower(),
        **pace.model_dump(exclude={"traffic"}),
        **layout.ports.model_dump(),
    )
    write_atomically(layout.path, layout.model_dump_json(indent=1))
    return write_atomically(layout.config_path, text)


def read_layout(state_dir: Path) -> Layout:
    """Return the layout of a demonstration. Raises FileNotFoundError when none was started there, and ValueError."""
    return Layout.model_validate_json((state_dir / "demo.json").read_text(encoding="utf-8"))
