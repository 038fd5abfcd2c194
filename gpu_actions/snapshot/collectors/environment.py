"""NCCL_* and CUDA_* of the running tier, from /proc/PID/environ: a leftover NCCL_P2P_DISABLE=1 is a known cause of PCIe-only.

Values are kept only for names on the allow-list; of all others the name alone, since an environment holds secrets.
"""

from gpu_actions.snapshot.collectors import CollectorFailed, CollectorSkipped
from gpu_actions.snapshot.collectors.ranks import process_table, read_environment, tree_of
from gpu_actions.snapshot.host_model import EnvironmentReading

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


async def collect_environment(roots: tuple[int, ...]) -> EnvironmentReading:
    """Read the variables of every process below `roots`. Raises CollectorFailed when not one could be read."""
    if not roots:
        raise CollectorSkipped("no process of the tier was named")
    rows = tree_of(roots, process_table())[:MAX_PROCESSES]
    values: dict[str, dict[str, tuple[int, ...]]] = {}
    names: set[str] = set()
    read: list[int] = []
    unreadable: list[int] = []
    for row in rows:
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
            if not name.startswith(("NCCL_", "CUDA_")):
                continue
            if name not in ALLOWED:
                names.add(name[:80])
                continue
            pids = values.setdefault(name, {}).get(value[:MAX_VALUE], ())
            values[name][value[:MAX_VALUE]] = (*pids, row.pid)
    if not read:
        raise CollectorFailed(
            f"may not read the environment of {len(unreadable)} processes: run as root or as the tier's user"
            if unreadable
            else "no process of the tier is alive"
        )
    return EnvironmentReading(
        pids=tuple(read),
        values=values,
        names_only=tuple(sorted(names)[:MAX_NAMES]),
        unreadable=tuple(unreadable),
    )
