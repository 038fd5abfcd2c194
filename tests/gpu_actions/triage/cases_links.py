"""Hosts whose links, slots or fabric are odd or fail, and the verdict and cause that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.fabric_manager import FabricManagerReading
from gpu_actions.snapshot.collectors.nvml import FabricReading, GpuSample, LinkReading, NvmlReading
from gpu_actions.snapshot.model import Snapshot
from gpu_actions.triage.baselines import TriageBaseline
from tests.gpu_actions.triage import builders as make

H100_LINKS = make.gpu(0).links


def links(changes: dict[int, dict[str, Any]], *, gpu: int = 2, **of_gpu: Any) -> NvmlReading:
    """Return the healthy GPUs with some links of one changed."""
    rows = tuple(link.model_copy(update=changes.get(link.index, {})) for link in H100_LINKS)
    return make.with_gpu(gpu, links=rows, **of_gpu)


def grown(counter: str, before: int, after: int, *, number: int = 7) -> NvmlReading:
    """Return the healthy GPUs, one link of which counted errors within the window of 3 s."""
    errors = make.ERRORS | {counter: before}
    return links({number: {"first": errors, "last": make.ERRORS | {counter: after}}})


def bit_errors(before: int, after: int) -> dict[str, Any]:
    return {"first": {"effective_ber": before}, "last": {"effective_ber": after}}


def of_model(name: str, **changes: Any) -> NvmlReading:
    """Return eight GPUs of another model."""
    base = make.nvml()
    return base.model_copy(
        update={"gpus": tuple(one.model_copy(update={"name": name, **changes}) for one in base.gpus)}
    )


def sampled(*, first: dict[str, Any], last: dict[str, Any], **changes: Any) -> NvmlReading:
    """Return the healthy GPUs, with other readings of GPU 1 at the ends of the window."""
    one = make.gpu(1)
    return make.with_gpu(
        1,
        first=one.first.model_copy(update=first),
        last=GpuSample.model_validate(one.latest.model_dump() | last),
        **changes,
    )


def fabric(**changes: Any) -> NvmlReading:
    return make.with_gpu(4, fabric=FabricReading(**{"state": 3, **changes}))


def manager(**changes: str) -> FabricManagerReading:
    return FabricManagerReading(**{"unit": "fm", "load_state": "loaded", "active_state": "active", **changes})


def pairs(status: int | None, *, first: int = 0, second: int = 1, ancestor: int | None = 40) -> NvmlReading:
    """Return the healthy GPUs, one pair of which has another P2P status."""
    base = make.nvml()
    changed = {"nvlink_p2p": status, "common_ancestor": ancestor}
    rows = tuple(
        row.model_copy(update=changed) if (row.first, row.second) == (first, second) else row
        for row in base.pairs
    )
    return base.model_copy(update={"pairs": rows, "pairs_unread": None if status is not None else "unknown"})


UNWIRED = tuple(
    LinkReading(index=number, active=number < 12, remote_kind="switch", speed_mbps=26562)
    for number in range(18)
)
Make = Callable[[], Snapshot]
CASES: dict[str, tuple[Any, ...]] = {
    # links
    "two lost links of one GPU and one of another": (
        lambda: make.healthy(nvml=make.links_down({1: (3, 9), 6: (0,)})),
        "fall_back",
        "nvlink_partial",
    ),
    "ten lost links of one GPU": (
        lambda: make.healthy(nvml=make.links_down({1: tuple(range(10))})),
        "fall_back",
        "nvlink_partial",
    ),
    "a lost link on a host that tolerates one": (
        lambda: make.healthy(nvml=make.links_down({1: (3,)})),
        "watch",
        "nvlink_partial",
        {"thresholds": TriageThresholds(links_missing=2)},
    ),
    "two lost links on a host that tolerates one": (
        lambda: make.healthy(nvml=make.links_down({1: (3, 4)})),
        "fall_back",
        "nvlink_partial",
        {"thresholds": TriageThresholds(links_missing=2)},
    ),
    "lost links to one peer GPU": (
        lambda: make.healthy(
            nvml=make.nvml(
                gpus=tuple(
                    one.model_copy(
                        update={
                            "links": (
                                one.links[0].model_copy(
                                    update={"active": False, "remote_kind": "gpu", "remote_pci": make.gpu(5).pci}
                                ),
                                *one.links[1:],
                            )
                        }
                    )
                    if one.index in (0, 3)
                    else one
                    for one in make.nvml().gpus
                )
            )
        ),
        "fall_back",
        "nvlink_partial",
    ),
    "a driver that lists 17 of 18 links": (
        lambda: make.healthy(nvml=make.with_gpu(2, links=H100_LINKS[:17])),
        "fall_back",
        "nvlink_partial",
    ),
    "a link that the driver lists no more, with a baseline that knows its end": (
        lambda: make.healthy(nvml=make.with_gpu(2, links=H100_LINKS[:17])),
        "fall_back",
        "nvlink_partial",
        {"baseline": TriageBaseline(remote_ends={"GPU-2": {17: "00000000:06:00.0"}})},
    ),
    "a board that lists links which it does not wire": (
        lambda: make.healthy(nvml=of_model("NVIDIA A100-SXM4-80GB", links=UNWIRED)),
        "healthy",
        "none",
    ),
    "a board with unwired links that lost one": (
        lambda: make.healthy(
            nvml=of_model(
                "NVIDIA A100-SXM4-80GB", links=(UNWIRED[0].model_copy(update={"active": False}), *UNWIRED[1:])
            )
        ),
        "fall_back",
        "nvlink_partial",
    ),
    "one link whose state cannot be read": (
        lambda: make.healthy(nvml=links({4: {"active": None}}, unread={"links": "unknown"})),
        "unknown",
        "unknown",
    ),
    "no link is reported": (lambda: make.healthy(nvml=make.with_gpu(2, links=())), "unknown", "unknown"),
    "an unknown model of which one GPU has fewer links": (
        lambda: make.healthy(
            nvml=of_model("NVIDIA X999").model_copy(
                update={
                    "gpus": tuple(
                        one.model_copy(
                            update={
                                "name": "NVIDIA X999",
                                "links": one.links if one.index else UNWIRED,
                            }
                        )
                        for one in make.nvml().gpus
                    )
                }
            )
        ),
        "fall_back",
        "nvlink_partial",
    ),
    "a GPU model without links": (
        lambda: make.healthy(nvml=of_model("NVIDIA L40S", links=(), fabric=None), fabric_manager=manager()),
        "healthy",
        "none",
    ),
    "a model of links that this host does not use": (
        lambda: make.healthy(nvml=make.links_down({2: (5,)}), expected={"links": 0}),
        "healthy",
        "none",
    ),
    "one replay within the window": (
        lambda: make.healthy(nvml=grown("replay", 3, 4)), "watch", "nvlink_errors"
    ),
    "one recovery within the window": (
        lambda: make.healthy(nvml=grown("recovery", 0, 1)), "watch", "nvlink_errors"
    ),
    "one replay on a host that tolerates one": (
        lambda: make.healthy(nvml=grown("replay", 3, 4)),
        "healthy",
        "none",
        {"thresholds": TriageThresholds(nvlink_replay_delta=2)},
    ),
    "exactly as many CRC errors as are allowed": (
        lambda: make.healthy(nvml=grown("crc", 21, 321)), "healthy", "none"
    ),
    "one CRC error more than are allowed": (
        lambda: make.healthy(nvml=grown("crc", 21, 322)), "watch", "nvlink_errors"
    ),
    "counters of links that were reset within the window": (
        lambda: make.healthy(nvml=grown("crc", 90000, 0)), "healthy", "none"
    ),
    "two links with errors": (
        lambda: make.healthy(
            nvml=links(
                {
                    number: {"first": {"replay": 1, "symbol_errors": 5}, "last": {"replay": 3, "symbol_errors": 9005}}
                    for number in (2, 11)
                }
            )
        ),
        "watch",
        "nvlink_errors",
    ),
    "errors on a host whose window was not measured": (
        lambda: make.healthy(nvml=grown("crc", 21, 322).model_copy(update={"window_s": None})),
        "watch",
        "nvlink_errors",
    ),
    "two links whose bit error rate grew": (
        lambda: make.healthy(nvml=links({3: bit_errors(0x40D, 0x20B), 5: {"first": {"effective_ber": 0x70B}}})),
        "watch",
        "nvlink_errors",
    ),
    "a link at the limit of its bit error rate": (
        lambda: make.healthy(nvml=links({3: {"last": {"effective_ber": 0x10C}}})), "healthy", "none"
    ),
    "a link at 94 % of its speed": (
        lambda: make.healthy(nvml=links({3: {"speed_mbps": 24968}, 4: {"speed_mbps": 20000}})),
        "watch",
        "nvlink_errors",
    ),
    "a link at 96 % of its speed": (
        lambda: make.healthy(nvml=links({3: {"speed_mbps": 25500}})), "healthy", "none"
    ),
    "a link that is down and slow": (
        lambda: make.healthy(nvml=links({3: {"speed_mbps": 20000, "active": False}})),
        "fall_back",
        "nvlink_partial",
    ),
    # PCIe and P2P
    "one pair without P2P over NVLink": (lambda: make.healthy(nvml=pairs(5)), "fall_back", "pcie_only"),
    "one pair without P2P, on an unknown route": (
        lambda: make.healthy(nvml=pairs(3, first=2, second=7, ancestor=None)), "fall_back", "pcie_only"
    ),
    "one pair whose P2P status cannot be read": (
        lambda: make.healthy(nvml=pairs(None)), "unknown", "unknown"
    ),
    "no pair was read": (lambda: make.healthy(nvml=make.nvml(pairs=())), "unknown", "unknown"),
    "P2P level 0": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_LEVEL="0")), "fall_back", "pcie_only"
    ),
    "P2P level loc, in small letters": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_LEVEL=" loc ")), "fall_back", "pcie_only"
    ),
    "P2P disabled with an empty value": (
        lambda: make.healthy(environment=make.environment(NCCL_P2P_DISABLE=" ")), "healthy", "none"
    ),
    "CUDA_VISIBLE_DEVICES with all GPUs": (
        lambda: make.healthy(environment=make.environment(CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7")),
        "healthy",
        "none",
    ),
    "CUDA_VISIBLE_DEVICES with one GPU too few": (
        lambda: make.healthy(environment=make.environment(CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,")),
        "watch",
        "environment",
    ),
    "CUDA_VISIBLE_DEVICES of a fallback tier": (
        lambda: make.healthy(
            environment=make.environment(CUDA_VISIBLE_DEVICES="3"),
            expected={"tier": "fallback", "router_server": "fb"},
        ),
        "healthy",
        "none",
    ),
    "a slot at a lower generation that is idle at one end": (
        lambda: make.healthy(
            nvml=sampled(
                first={"pcie_generation": 1, "utilisation_percent": 10}, last={"pcie_generation": 1}
            )
        ),
        "healthy",
        "none",
    ),
    "a slot that reaches its generation at one end": (
        lambda: make.healthy(nvml=sampled(first={"pcie_generation": 1}, last={})), "healthy", "none"
    ),
    "a slot at a lower generation and half its lanes under load": (
        lambda: make.healthy(
            nvml=sampled(first={"pcie_generation": 3}, last={"pcie_generation": 4}, pcie_width=8)
        ),
        "watch",
        "pcie_degraded",
    ),
    "one replay of PCIe within the window": (
        lambda: make.healthy(nvml=sampled(first={"pcie_replays": 2}, last={"pcie_replays": 3})),
        "healthy",
        "none",
    ),
    "two replays of PCIe within the window": (
        lambda: make.healthy(nvml=sampled(first={"pcie_replays": 2}, last={"pcie_replays": 4})),
        "watch",
        "pcie_degraded",
    ),
    # the fabric
    "a fabric that registers": (
        lambda: make.healthy(nvml=fabric(state=2)), "watch", "fabric_manager_down"
    ),
    "a fabric that registers under a stall": (
        lambda: make.healthy(
            nvml=fabric(state=2),
            engine=make.engine(tokens=(1000, 1000)),
            completion=make.completion("timeout", tokens=0),
        ),
        "fall_back",
        "fabric_manager_down",
    ),
    "a registration that ended with an error": (
        lambda: make.healthy(nvml=fabric(status=15)), "fall_back", "nvlink_loss"
    ),
    **{
        f"a fabric with {name.replace('_', ' ')}": (
            lambda name=name: make.healthy(nvml=fabric(**{name: True})), "watch", "nvlink_errors"
        )
        for name in ("degraded_bandwidth", "route_recovery", "access_timeout", "incorrect_configuration")
    },
    "a fabric manager that reloads": (
        lambda: make.healthy(fabric_manager=manager(active_state="reloading")), "healthy", "none"
    ),
    "a fabric manager that failed by its core": (
        lambda: make.healthy(fabric_manager=manager(active_state="failed", result="core-dump")),
        "watch",
        "fabric_manager_down",
    ),
    "a fabric manager that is not installed": (
        lambda: make.healthy(fabric_manager=manager(load_state="not-found", active_state="inactive")),
        "healthy",
        "none",
    ),
}  # fmt: skip
