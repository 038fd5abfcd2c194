"""The ladder: which rung today's GPUs can carry: pure, and over a fake driver."""

import itertools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from gpu_actions.action import PlanRefused
from gpu_actions.config.host import HostConfig
from gpu_actions.fallback.gpus import Candidate, Choice
from gpu_actions.fallback.ladder import GpuState, Need, Pick, gpu_states, pick_gpus, pick_rungs, with_rungs
from gpu_actions.fallback.ladder_document import EXAMPLE, GPUS, PATTERNS, states
from gpu_actions.models import GpuHealth, Verdict, VerdictKind
from gpu_actions.snapshot.collect import collect
from gpu_actions.snapshot.collectors.nvml import NvmlReading
from gpu_actions.snapshot.target import target_of_host
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory, read_gpus
from gpu_actions.triage.judge import judge
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.fakes import build_fake_nvml, fake_nvml
from tests.gpu_actions.site import data_of, summary_of
from tests.gpu_actions.triage.builders import healthy, links_down, nvml

__all__ = ["build_fake_nvml", "fake_nvml"]

Install = Callable[..., Path]
ALL = range(GPUS)


def by_hand(well: Collection[int], linked: Callable[[int, int], bool]) -> tuple[str, int]:
    """Return the rung and the number of its GPUs that a person would take: the largest set whose pairs are all linked."""
    for name, size in (("tp4", 4), ("tp2", 2)):
        for chosen in itertools.combinations(sorted(well), size):
            if all(linked(one, other) for one, other in itertools.combinations(chosen, 2)):
                return name, size
    return ("fallback", 1) if well else ("none", 0)


def taken(picks: Iterable[Pick]) -> tuple[str, tuple[int, ...]]:
    pick = next((one for one in picks if one.carried), None)
    return ("none", ()) if pick is None else (pick.rung, tuple(gpu.index for gpu in pick.gpus))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_for_every_set_of_gpus_that_are_ruled_out_the_rung_is_the_one_a_person_would_take(
    pattern: str,
) -> None:
    linked = PATTERNS[pattern]
    for out in itertools.chain.from_iterable(itertools.combinations(ALL, count) for count in range(GPUS + 1)):
        rung, gpus = taken(pick_rungs(EXAMPLE, states(out, linked)))
        assert (rung, len(gpus)) == by_hand(set(ALL) - set(out), linked), out
        assert not set(gpus) & set(out)
        assert all(linked(one, other) for one, other in itertools.combinations(gpus, 2))


def test_for_every_set_of_gpus_that_lost_their_links_the_rung_is_the_one_a_person_would_take() -> None:
    for lost in itertools.chain.from_iterable(
        itertools.combinations(ALL, count) for count in range(GPUS + 1)
    ):

        def linked(one: int, other: int, lost: tuple[int, ...] = lost) -> bool:
            return one not in lost and other not in lost

        rung, gpus = taken(pick_rungs(EXAMPLE, states((), linked)))
        assert (rung, len(gpus)) == by_hand(ALL, linked), lost


def memories(free_gib: float = 78) -> GpuMemories:
    return GpuMemories(
        gpus=tuple(
            GpuMemory(index=one, uuid=f"GPU-{one}", total_mib=80 * 1024, free_mib=free_gib * 1024, pids=())
            for one in ALL
        )
    )


def picks_of(reading: NvmlReading, **others: Any) -> tuple[Pick, ...]:
    """Return the picks from what triage makes of a reading."""
    verdict = judge(healthy(nvml=reading, **others))
    return pick_rungs(EXAMPLE, gpu_states(memories(), verdict, limit_percent=80))


@pytest.mark.parametrize(
    ("down", "rung", "gpus"),
    [
        ({}, "tp4", (0, 1, 2, 3)),
        ({0: (7,)}, "tp4", (1, 2, 3, 4)),
        ({0: tuple(range(18))}, "tp4", (1, 2, 3, 4)),
        (dict.fromkeys(range(4), (3,)), "tp4", (4, 5, 6, 7)),
        (dict.fromkeys(range(5), (3,)), "tp2", (5, 6)),
        ({one: tuple(range(18)) for one in range(7)}, "fallback", (7,)),
        ({one: tuple(range(18)) for one in ALL}, "fallback", (0,)),
    ],
)
def test_links_that_triage_reads_as_lost_keep_their_gpus_out_of_rungs_that_need_them(
    down: dict[int, tuple[int, ...]], rung: str, gpus: tuple[int, ...]
) -> None:
    found, chosen = taken(picks_of(links_down(down)))
    assert found == rung
    if rung != "fallback":
        assert chosen == gpus


def test_gpus_that_are_linked_directly_reach_each_other_only_where_all_links_between_the_two_are_up() -> None:
    """Four GPUs, each with links to each other one; one of the links between GPU 0 and GPU 1 is down."""
    base = nvml(4)
    pci = [gpu.pci for gpu in base.gpus]

    def links(gpu: int) -> tuple[Any, ...]:
        others = [other for other in range(4) if other != gpu]
        return tuple(
            link.model_copy(
                update={
                    "remote_kind": "gpu",
                    "remote_pci": pci[others[link.index % 3]],
                    "active": not (link.index == 0 and {gpu, others[0]} == {0, 1}),
                }
            )
            for link in base.gpus[gpu].links
        )

    reading = base.model_copy(
        update={"gpus": tuple(gpu.model_copy(update={"links": links(gpu.index)}) for gpu in base.gpus)}
    )
    verdict = judge(healthy(nvml=reading, expected={"gpus": 4}))
    assert {gpu.index: gpu.reaches for gpu in verdict.gpus} == {
        0: (2, 3),
        1: (2, 3),
        2: (0, 1, 3),
        3: (0, 1, 2),
    }


def test_a_gpu_that_triage_rules_out_is_named_with_the_reason() -> None:
    sick = tuple(
        GpuHealth(uuid=f"GPU-{one}", index=one, ruled_out="" if one > 4 else "uncorrected ECC errors")
        for one in ALL
    )
    verdict = Verdict(verdict=VerdictKind.FALL_BACK, cause="ecc", summary="", gpus=sick)
    pick = pick_gpus(EXAMPLE[0], gpu_states(memories(), verdict, limit_percent=80))
    assert pick.passed_over == (
        "it needs 4 GPUs, and 3 of 8 GPUs can serve "
        "(GPU 0: uncorrected ECC errors; GPU 1: uncorrected ECC errors; GPU 2: uncorrected ECC errors; 2 more)"
    )


def test_a_rung_that_may_use_pcie_takes_linked_gpus_first_and_any_others_otherwise() -> None:
    need = Need("tp2", 2, 60, needs_nvlink=False)
    pairs = pick_gpus(need, states((0,), PATTERNS["linked in pairs"]))
    assert [gpu.index for gpu in pairs.gpus] == [2, 3]
    apart = pick_gpus(need, states((), PATTERNS["no links"]))
    assert ([gpu.index for gpu in apart.gpus], apart.note.endswith("over PCIe")) == ([0, 1], True)


def test_gpus_with_room_beside_tp_and_fewer_findings_come_first() -> None:
    gpus = [
        GpuState(
            index=one,
            uuid=f"GPU-{one}",
            usable_gib=64,
            free_gib=64 if one in (2, 4, 5) else 3,
            findings=1 if one == 2 else 0,
            reaches=frozenset(ALL) - {one},
        )
        for one in ALL
    ]
    pick = pick_gpus(EXAMPLE[1], gpus)
    assert ([gpu.index for gpu in pick.gpus], pick.beside) == ([4, 5], True)
    assert not pick_gpus(EXAMPLE[0], gpus).beside


LAST = Choice(candidates=(Candidate(gpu="GPU-3", reason="GPU 3: coolest", beside=True),))


def order(choice: Choice) -> list[str]:
    return [candidate.rung for candidate in choice.candidates]


def test_each_attempt_is_the_next_rung_below_and_a_rung_by_hand_begins_there() -> None:
    picks = pick_rungs(EXAMPLE[:2], states((), PATTERNS["all linked"]))
    assert order(with_rungs(LAST, picks)) == ["tp4", "tp2", "fallback"]
    assert order(with_rungs(LAST, picks, wanted="tp2")) == ["tp2", "fallback"]
    assert order(with_rungs(LAST, picks, wanted="fallback")) == ["fallback", "fallback"]
    nothing = with_rungs(LAST, pick_rungs(EXAMPLE[:2], states((), PATTERNS["no links"])), wanted="tp4")
    assert nothing.problems[0].startswith("rung tp4 cannot be carried: it needs 4 GPUs")
    ready = with_rungs(LAST, picks, standby_is_ready=True)
    assert order(ready) == ["fallback", "tp4", "tp2"]
    assert ready.passed_over == (
        "the standby is ready and serves first, instead of rung tp4; to begin with that one: rung=tp4",
    )


def test_a_rung_whose_unit_cannot_start_is_passed_over_and_the_last_rung_may_be_too() -> None:
    picks = pick_rungs(EXAMPLE[:2], states((), PATTERNS["all linked"]))
    choice = with_rungs(LAST, picks, blocked={"tp4": "its port is taken", "fallback": "frozen"})
    assert order(choice) == ["tp2", "tp2"]
    assert choice.passed_over == (
        "rung tp4 is passed over: its port is taken",
        "rung fallback is passed over: frozen",
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "tp"}, "a rung cannot be named 'tp'"),
        ({"name": "b"}, "two rungs of the ladder are named 'b'"),
        ({"server": "fallback"}, "have the same server fallback"),
        ({"engine": {"url": "http://127.0.0.1:2", "model": "m"}}, "have the same port 2"),
        ({"standby": "sleep"}, r"only tiers\.fallback can have a standby"),
        ({"unit": {"driver": "process", "argv": ["fallback"]}}, "have the same unit"),
    ],
)
def test_a_ladder_whose_rungs_cannot_be_told_apart_is_refused(changes: dict[str, Any], problem: str) -> None:
    def tier(name: str, port: int) -> dict[str, Any]:
        return {
            "engine": {"url": f"http://127.0.0.1:{port}", "model": "m"},
            "unit": {"driver": "process", "argv": [name]},
            "server": name,
        }

    rungs = [{"name": "a", **tier("a", 3), **changes}, {"name": "b", **tier("b", 4)}]
    tiers = {"tp": tier("tp", 1), "fallback": tier("fallback", 2), "ladder": rungs}
    with pytest.raises(ValueError, match=problem):
        HostConfig.model_validate({"name": "h", "tiers": tiers})


async def test_over_a_driver_the_rung_gets_gpus_that_are_linked_and_the_plan_says_why_one_was_passed_over(
    site_with: MakeSite, fake_nvml: Install
) -> None:
    lost = [f"gpu.{gpu}.link.7.active=0" for gpu in range(5)]
    fake_nvml("gpus=8", *lost)
    rungs: dict[str, Any] = {
        "tp4": {"gpus": 4, "memory_gib_per_gpu": 20},
        "tp2": {"gpus": 2, "memory_gib_per_gpu": 20},
    }
    site = await site_with(
        ladder=rungs, tp_tier={"gpus": 8}, fallback_tier={"gpus": 1, "memory_gib_per_gpu": 20}
    )
    host = site.host
    with pytest.raises(PlanRefused, match="no triage of the last hour says which GPUs reach each other"):
        await site.plan(rung="tp2")
    verdict = judge(await collect(await target_of_host(host), host.thresholds, window_s=0.5), host.thresholds)
    plan = await site.plan(verdict=verdict, skip_validation=True)
    assert [one["rung"] for one in plan.alternatives["serve"]][:2] == ["tp2", "fallback"]
    uuids = {gpu.index: gpu.uuid for gpu in (await read_gpus()).gpus}
    assert plan.alternatives["serve"][0]["gpus"] == [uuids[5], uuids[6]]
    reason = (
        "rung tp4 is passed over: it needs 4 GPUs, and too few of them are linked to each other by NVLink "
        "(the largest set: GPUs 5, 6, 7)"
    )
    assert reason in plan.warnings
    end = await site.run(plan)
    assert end.ended.status == "succeeded", [step.outcome.summary for step in end.steps]
    assert data_of(end, "scope")["variables"] == {"CUDA_VISIBLE_DEVICES": f"{uuids[5]},{uuids[6]}"}
    assert reason in summary_of(end, "scope")
    with pytest.raises(PlanRefused, match="rung tp4 cannot be carried"):
        await site.plan(verdict=verdict, rung="tp4")
