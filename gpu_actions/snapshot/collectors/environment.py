"""NCCL_* and CUDA_* variables of the running tier: a leftover NCCL_P2P_DISABLE=1 is a known cause of a PCIe-only tier.

Values are kept only for the names in `ALLOWED`, because an environment holds secrets.
"""

from pydantic import Field

from gpu_actions.models import Frozen
from gpu_actions.snapshot.collector import Collector, CollectorFailed, CollectorSkipped, Source
from gpu_actions.snapshot.collectors.ranks import roots_of
from gpu_actions.system.proc import process_table, read_environment, tree_of

ALLOWED = frozenset(
    {
        "NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL", "NCCL_P2P_DIRECT_DISABLE", "NCCL_SHM_DISABLE", "NCCL_NVLS_ENABLE",
        "NCCL_CUMEM_ENABLE", "NCCL_CUMEM_HOST_ENABLE", "NCCL_ALGO", "NCCL_PROTO", "NCCL_DEBUG", "NCCL_NET",
        "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME", "NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS", "NCCL_BUFFSIZE",
        "NCCL_RAS_ENABLE", "NCCL_RAS_ADDR", "NCCL_BLOCKING_WAIT", "NCCL_ASYNC_ERROR_HANDLING", "NCCL_TIMEOUT",
        "NCCL_LAUNCH_MODE", "NCCL_IGNORE_CPU_AFFINITY", "NCCL_GRAPH_MIXING_SUPPORT",
        "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_MODULE_LOADING", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE",
    }
)  # fmt: skip
MAX_VALUE = 256
MAX_PROCESSES = 128
MAX_NAMES = 64


class EnvironmentReading(Frozen):
    """NCCL_* and CUDA_* variables of the running tier, by process."""

    pids: tuple[int, ...] = ()
    values: dict[str, dict[str, tuple[int, ...]]] = Field(
        default_factory=dict, description="name -> value -> pids that have it"
    )
    names_only: tuple[str, ...] = ()
    unreadable: tuple[int, ...] = ()


async def collect_environment(roots: tuple[int, ...]) -> EnvironmentReading:
    """Read the variables of every process below `roots`. Raises CollectorFailed if none can be read."""
    if not roots:
        raise CollectorSkipped("no process of the tier is known")
    values: dict[str, dict[str, tuple[int, ...]]] = {}
    names: set[str] = set()
    read: list[int] = []
    unreadable: list[int] = []
    for row in tree_of(roots, process_table())[:MAX_PROCESSES]:
        if row.state in ("Z", "X"):
            continue
        try:
            environment = read_environment(row.pid)
        except PermissionError:
            unreadable.append(row.pid)
            continue
        except (FileNotFoundError, ProcessLookupError):
            continue
        read.append(row.pid)
        for name, value in environment.items():
            if name in ALLOWED:
                pids = values.setdefault(name, {}).get(value[:MAX_VALUE], ())
                values[name][value[:MAX_VALUE]] = (*pids, row.pid)
            elif name.startswith(("NCCL_", "CUDA_")):
                names.add(name[:80])
    if not read:
        raise CollectorFailed(
            f"permission denied for the environment of {len(unreadable)} processes: run as root or as the tier's user"
            if unreadable
            else "no process of the tier is alive"
        )
    return EnvironmentReading(
        pids=tuple(read),
        values=values,
        names_only=tuple(sorted(names)[:MAX_NAMES]),
        unreadable=tuple(unreadable),
    )


async def _collect(source: Source) -> EnvironmentReading:
    return await collect_environment(roots_of(source.target))


ENVIRONMENT = Collector(collect=_collect, deadline_s=lambda source: 5)
