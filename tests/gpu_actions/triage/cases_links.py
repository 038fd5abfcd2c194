"""Hosts whose NVLinks are odd or fail, and the verdict and cause that must follow."""

from collections.abc import Callable
from typing import Any

from gpu_actions.config.thresholds import TriageThresholds
from gpu_actions.snapshot.collectors.nvml import FabricReading, LinkReading, NvmlReading
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


def mixed(name: str, **first: Any) -> NvmlReading:
    """Return the healthy GPUs, the first of which is of another model."""
    return make.with_gpu(0, name=name, **first)


def lost(ends: dict[int, dict[int, tuple[str | None, str | None]]], *, count: int = 8) -> NvmlReading:
    """Return GPUs with lost links: GPU -> link -> kind and address of the remote end."""
    base = make.nvml(count)
    changed = []
    for one in base.gpus:
        gone = ends.get(one.index, {})
        changed.append(
            one.model_copy(
                update={
                    "links": tuple(
                        link.model_copy(
                            update={
                                "active": False,
                                "remote_kind": gone[link.index][0],
                                "remote_pci": gone[link.index][1],
                            }
                        )
                        if link.index in gone
                        else link
                        for link in one.links
                    )
                }
            )
        )
    return base.model_copy(update={"gpus": tuple(changed)})


UNWIRED = tuple(
    LinkReading(index=number, active=number < 12, remote_kind="switch", speed_mbps=26562)
    for number in range(18)
)
Make = Callable[[], Snapshot]
A, B = "00000000:AA:00.0", "00000000:BB:00.0"
ON_A, ON_B = ("switch", A), ("switch", B)
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
    "eight lost links of one GPU": (
        lambda: make.healthy(nvml=make.links_down({3: tuple(range(8))})), "fall_back", "nvlink_partial"
    ),
    "nine lost links of one GPU": (
        lambda: make.healthy(nvml=make.links_down({3: tuple(range(9))})), "fall_back", "nvlink_partial"
    ),
    "two lost ends, the one with more links told first": (
        lambda: make.healthy(
            nvml=lost({0: {1: ON_A, 2: ON_B}, 1: {3: ON_A, 4: ON_B, 5: ON_B}})
        ),
        "fall_back",
        "nvlink_partial",
    ),
    "an end that only one GPU lost, beside one that two lost": (
        lambda: make.healthy(nvml=lost({0: dict.fromkeys((1, 2, 3), ON_A) | {4: ON_B}, 6: {9: ON_B}})),
        "fall_back",
        "nvlink_partial",
    ),
    "a lost end of which no GPU tells the kind": (
        lambda: make.healthy(nvml=lost({0: {4: (None, B)}, 6: {9: (None, B)}})), "fall_back", "nvlink_partial"
    ),
    "a lost end of which one GPU tells the kind": (
        lambda: make.healthy(nvml=lost({0: {4: ("switch", B)}, 6: {9: (None, B)}})), "fall_back", "nvlink_partial"
    ),
    "a lost link of two GPUs": (
        lambda: make.healthy(nvml=lost({1: {4: ("gpu", None)}}, count=2), expected={"gpus": 2, "ranks": None}),
        "fall_back",
        "nvlink_partial",
    ),
    "a lost link of the only GPU that answers": (
        lambda: make.healthy(nvml=make.links_down({0: (4,)}).model_copy(update={"gpus": make.links_down({0: (4,)}).gpus[:1]})),
        "fall_back",
        "nvlink_partial",
    ),
    "a lost link behind a GPU that needs none": (
        lambda: make.healthy(
            nvml=make.links_down({5: (2,)}).model_copy(
                update={"gpus": (mixed("NVIDIA L40S", links=()).gpus[0], *make.links_down({5: (2,)}).gpus[1:])}
            )
        ),
        "fall_back",
        "nvlink_partial",
    ),
    "GPUs of two models, with all the links of each": (
        lambda: make.healthy(nvml=mixed("NVIDIA A100-SXM4-80GB", links=H100_LINKS[:12])), "healthy",
        "none"
    ),
    "a board with one unwired link": (
        lambda: make.healthy(nvml=links({3: {"active": False}}), expected={"links": 17}), "healthy", "none"
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
    "a GPU with a broken route through the fabric": (
        lambda: make.healthy(nvml=make.with_gpu(3, fabric=FabricReading(state=3, route_unhealthy=True))),
        "fall_back",
        "nvlink_loss",
    ),
    "a GPU that lost bandwidth in the fabric and recovers": (
        lambda: make.healthy(
            nvml=make.with_gpu(3, fabric=FabricReading(state=3, degraded_bandwidth=True, route_recovery=True))
        ),
        "watch",
        "nvlink_errors",
    ),
    "a GPU model without links": (
        lambda: make.healthy(nvml=of_model("NVIDIA L40S", links=(), fabric=None)),
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
    "a link that failed to recover": (
        lambda: make.healthy(nvml=grown("recovery_failed", 0, 2)), "watch", "nvlink_errors"
    ),
    "CRC errors at a high rate in a short window": (
        lambda: make.healthy(nvml=grown("crc", 0, 60).model_copy(update={"window_s": 0.5})), "watch", "nvlink_errors"
    ),
    "no error on a host that tolerates hardly any": (
        lambda: make.healthy(), "healthy", "none", {"thresholds": TriageThresholds(nvlink_crc_per_s=0.1)}
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
        lambda: make.healthy(nvml=links({3: bit_errors(0x40D, 0x70B), 5: {"first": {"effective_ber": 0x20B}}})),
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
}  # fmt: skip
