"""The pure decisions of a fallback: which GPU, which order, what a token counter shows, which state is left."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_actions.config.host import TierConfig
from gpu_actions.fallback.action import choose_order
from gpu_actions.fallback.cleanup import Found, ServingState
from gpu_actions.fallback.gpus import choose_gpus
from gpu_actions.fallback.plan_steps import GROUPED, ORDERS, Order
from gpu_actions.fallback.settle import decide
from gpu_actions.models import FallbackGpu, Finding, Severity, Verdict, VerdictKind
from gpu_actions.serving.condition import Condition, Progress, TokenSample, judge_progress
from gpu_actions.tier.drain import silence_s
from gpu_actions.tier.gpu_memory import GpuMemories, GpuMemory
from gpu_actions.tier.launch import explaining_line
from gpu_actions.tier.stop import holders


def tier(*, gpus: int = 1, need_gib: float | None = 40) -> TierConfig:
    return TierConfig.model_validate(
        {
            "engine": {"url": "http://127.0.0.1:1", "model": "m"},
            "unit": {"driver": "process", "argv": ["true"]},
            "server": "fallback",
            "gpus": gpus,
            "memory_gib_per_gpu": need_gib,
        }
    )


def gpu(
    index: int, *, free_gib: float = 10, total_gib: float = 80, pids: tuple[int, ...] | None = ()
) -> GpuMemory:
    return GpuMemory(
        index=index, uuid=f"GPU-{index}", total_mib=total_gib * 1024, free_mib=free_gib * 1024, pids=pids
    )


def verdict(*, chosen: int | None = None, sick: tuple[int, ...] = (), component: str = "gpu") -> Verdict:
    return Verdict(
        verdict=VerdictKind.FALL_BACK,
        cause="nvlink_loss",
        summary="links are down",
        findings=tuple(
            Finding(
                id="nvlink.missing" if component == "nvlink" else "gpu.ecc",
                component=component,
                severity=Severity.CRITICAL,
                summary=f"GPU {i}: {component}",
                subject=f"GPU-{i}",
            )
            for i in sick
        ),
        fallback_gpu=None
        if chosen is None
        else FallbackGpu(uuid=f"GPU-{chosen}", index=chosen, reason="coolest"),
    )


FOUR = GpuMemories(gpus=tuple(gpu(index) for index in range(4)))


def chosen(
    memories: GpuMemories, word: Verdict | None, *, wanted: str = "auto", need_gib: float | None = 40
) -> list[str | None]:
    choice = choose_gpus(tier(need_gib=need_gib), memories, word, wanted=wanted, limit_percent=80)
    return [candidate.gpu for candidate in choice.candidates]


def test_triages_choice_comes_first_and_a_faulty_gpu_is_never_chosen() -> None:
    assert chosen(FOUR, verdict(chosen=2, sick=(0,))) == ["GPU-2", "GPU-1", "GPU-3"]


def test_without_a_verdict_the_emptiest_gpus_come_first() -> None:
    memories = GpuMemories(gpus=(gpu(0, free_gib=1), gpu(1, free_gib=70), gpu(2, free_gib=5)))
    assert chosen(memories, None) == ["GPU-1", "GPU-2", "GPU-0"]


@pytest.mark.parametrize("wanted", ["3", "GPU-3"])
def test_a_requested_gpu_is_the_only_candidate_and_is_tried_twice(wanted: str) -> None:
    assert chosen(FOUR, verdict(chosen=1), wanted=wanted) == ["GPU-3", "GPU-3"]


def test_a_faulty_gpu_can_be_requested_with_a_warning() -> None:
    choice = choose_gpus(tier(), FOUR, verdict(sick=(3,)), wanted="3", limit_percent=80)
    assert "was requested, but: GPU 3: gpu" in choice.warnings[0]


@pytest.mark.parametrize(
    ("memories", "word", "wanted", "need_gib", "problem"),
    [
        (FOUR, None, "9", 40, "there is no GPU '9' here"),
        (FOUR, None, "auto", 65, "is too small: the fallback needs 65 GiB, 80 % of its 80 GiB are 64"),
        (FOUR, verdict(chosen=0, sick=(0, 1, 2, 3)), "auto", 40, "is faulty"),
        (
            GpuMemories(error="driver not loaded"),
            None,
            "auto",
            40,
            "the GPUs cannot be read (driver not loaded)",
        ),
    ],
)
def test_a_choice_that_cannot_work_names_the_problem(
    memories: GpuMemories, word: Verdict | None, wanted: str, need_gib: float, problem: str
) -> None:
    choice = choose_gpus(tier(need_gib=need_gib), memories, word, wanted=wanted, limit_percent=80)
    assert choice.candidates == ()
    assert problem in choice.problems[0]


def test_lost_links_rule_no_gpu_out() -> None:
    everywhere = verdict(chosen=2, sick=(0, 1, 2, 3), component="nvlink")
    assert chosen(FOUR, everywhere) == ["GPU-2", "GPU-0", "GPU-1"]


def test_memory_of_other_processes_is_named_and_does_not_count_as_tps() -> None:
    def held(index: int, held_mib: dict[int, float]) -> GpuMemory:
        used = gpu(index, total_gib=140, free_gib=140 - sum(held_mib.values()) / 1024, pids=tuple(held_mib))
        return used.model_copy(update={"held_mib": held_mib})

    tp, stranger = 7, 4711
    crowded = held(0, {tp: 5 * 1024, stranger: 115 * 1024})
    choice = choose_gpus(tier(), GpuMemories(gpus=(crowded,)), None, own_pids={tp}, limit_percent=80)
    assert choice.candidates == ()
    assert "process 4711" in choice.problems[0]
    assert "115 GiB" in choice.problems[0]
    roomy = GpuMemories(gpus=(held(0, {tp: 120 * 1024}),))
    assert choose_gpus(tier(), roomy, None, own_pids={tp}, limit_percent=80).problems == ()


def test_memory_that_cannot_be_attributed_is_a_warning() -> None:
    """Inside a container NVML may report process ids of another namespace, so tp's own processes look like strangers."""
    crowded = gpu(0, total_gib=140, free_gib=20, pids=(4711,)).model_copy(
        update={"held_mib": {4711: 115 * 1024}}
    )
    memories = GpuMemories(gpus=(crowded,))
    choice = choose_gpus(tier(), memories, None, own_pids={7}, tp_holds_memory=True, limit_percent=80)
    assert [candidate.gpu for candidate in choice.candidates] == ["GPU-0", "GPU-0"]
    assert "process 4711" in choice.warnings[0]


def test_if_triage_found_no_gpu_that_can_serve_the_plan_is_refused_unless_one_is_requested() -> None:
    nothing = verdict(sick=(0,))
    assert "triage found no GPU" in choose_gpus(tier(), FOUR, nothing, limit_percent=80).problems[0]
    assert chosen(FOUR, nothing, wanted="2") == ["GPU-2", "GPU-2"]


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "its log is empty"),
        ("loading\nINFO exit 1", "INFO exit 1"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\nINFO exit 1", "torch.OutOfMemoryError"),
        (
            "torch.OutOfMemoryError: CUDA out of memory\nRuntimeError: engine core failed, see root cause above.",
            "torch.OutOfMemoryError",
        ),
        (
            "Traceback (most recent call last):\nFileNotFoundError: /models/m\nINFO exit 1",
            "FileNotFoundError",
        ),
    ],
)
def test_a_failed_start_quotes_the_line_of_the_log_that_explains_it(log: str, line: str) -> None:
    assert explaining_line(log).startswith(line)


def test_with_an_unreadable_driver_the_verdicts_gpu_is_still_tried() -> None:
    choice = choose_gpus(tier(), GpuMemories(error="NVML hangs"), verdict(chosen=2), limit_percent=80)
    assert [c.gpu for c in choice.candidates] == ["GPU-2", "GPU-2"]
    assert not choice.candidates[0].beside
    assert "NVML hangs" in choice.warnings[0]


@pytest.mark.parametrize(
    ("free_gib", "need_gib", "beside"), [(50, 40, True), (39, 40, False), (79, None, True), (50, None, False)]
)
def test_whether_it_fits_beside_tp_is_computed_from_free_memory_and_never_assumed(
    free_gib: float, need_gib: float | None, beside: bool
) -> None:
    memories = GpuMemories(gpus=(gpu(0, free_gib=free_gib),))
    choice = choose_gpus(tier(need_gib=need_gib), memories, None, limit_percent=80)
    assert choice.candidates[0].beside is beside


@given(
    sick=st.sets(st.integers(0, 7)),
    first=st.one_of(st.none(), st.integers(0, 7)),
    free=st.lists(st.floats(0, 80), min_size=8, max_size=8),
)
def test_a_faulty_gpu_is_never_a_candidate(sick: set[int], first: int | None, free: list[float]) -> None:
    memories = GpuMemories(gpus=tuple(gpu(i, free_gib=g) for i, g in enumerate(free)))
    choice = choose_gpus(tier(), memories, verdict(chosen=first, sick=tuple(sick)), limit_percent=80)
    assert not {c.gpu for c in choice.candidates} & {f"GPU-{i}" for i in sick}
    assert bool(choice.candidates) != bool(choice.problems)
    assert len(choice.candidates) <= 3
    if first is not None and first not in sick:
        assert choice.candidates[0].gpu == f"GPU-{first}"


@pytest.mark.parametrize(
    ("condition", "beside", "order"),
    [
        (Condition.SERVING, True, Order.PLANNED),
        (Condition.HUNG, True, Order.OVERLAPPED),
        (Condition.SILENT, True, Order.OVERLAPPED),
        (Condition.STOPPED, True, Order.OVERLAPPED),
        (Condition.SERVING, False, Order.IN_PLACE),
        (Condition.HUNG, False, Order.IN_PLACE),
    ],
)
def test_the_order_follows_from_the_tiers_condition_and_the_free_memory(
    condition: Condition, beside: bool, order: Order
) -> None:
    assert choose_order(condition, beside=beside) is order


@pytest.mark.parametrize("order", list(Order))
def test_every_order_saves_evidence_before_it_aborts_or_stops_and_routes_after_a_token(order: Order) -> None:
    ids = ORDERS[order]
    assert ids.index("capture") < ids.index("drain") < ids.index("stop")
    assert ids.index("warm") < ids.index("route") < ids.index("backpressure")
    where = [ids.index(step) for step in GROUPED]
    assert where == list(range(where[0], where[0] + 3))
    assert ids[-1] == "validate"


def samples(*rows: tuple[float, float | None, float | None]) -> list[TokenSample]:
    return [TokenSample(at_s=at, tokens=tokens, held=held) for at, tokens, held in rows]


@pytest.mark.parametrize(
    ("rows", "progress"),
    [
        ([], Progress.UNKNOWN),
        ([(0, None, None)], Progress.UNKNOWN),
        ([(0, 5, 2), (3, 5, 2)], Progress.FLAT),
        ([(0, 5, 2), (1, 5, 2), (2, 5, 2), (3.2, 5, 2)], Progress.FLAT),
        ([(0, 5, 2), (2.9, 5, 2)], Progress.UNKNOWN),
        ([(0, 5, 2), (3, 6, 2)], Progress.MOVING),
        ([(0, 5, 2), (3, 2, 2)], Progress.MOVING),  # an engine that was started again counts from 0
        ([(0, 5, 2), (3, 5, 0)], Progress.IDLE),
        ([(0, 5, 0), (3, 5, 2)], Progress.UNKNOWN),  # the request may have come a moment ago
        ([(0, 5, 2), (1, None, None), (3, 5, 2)], Progress.FLAT),
        ([(0, 1, 2), (10, 5, 2), (13, 5, 2)], Progress.FLAT),
    ],
)
def test_a_counter_is_flat_only_if_requests_were_held_all_the_time(
    rows: list[tuple[float, float | None, float | None]], progress: Progress
) -> None:
    assert judge_progress(samples(*rows), stall_s=3) is progress


@given(st.lists(st.tuples(st.floats(0.01, 2), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=20))
def test_a_counter_that_rose_within_the_window_is_never_called_flat(
    steps: list[tuple[float, int, int]],
) -> None:
    at, tokens, rows = 0.0, 0.0, []
    for gap, more, held in steps:
        at, tokens = at + gap, tokens + more
        rows.append((at, tokens, float(held)))
    if judge_progress(samples(*rows), stall_s=3) is Progress.FLAT:
        inside = [row for row in rows if row[0] >= at - 3]
        assert len({row[1] for row in inside}) == 1
        assert at - rows[0][0] >= 3


@pytest.mark.parametrize(
    "found",
    [
        Found(**dict(zip(Found.model_fields, row, strict=True)))
        for row in itertools.product((False, True), repeat=5)
    ],
)
def test_every_combination_of_probe_results_leads_to_one_state_that_it_supports(found: Found) -> None:
    decision = decide(found)
    if decision.state is ServingState.TP:
        assert (found.tp_active and found.tp_generates) or decision.start_tp
    elif decision.state is ServingState.FALLBACK:
        assert found.fallback_active
        assert found.fallback_generates
    else:
        assert not (found.tp_active and found.tp_generates)
        assert not (found.fallback_active and found.fallback_generates)
    if decision.start_tp:
        assert found.tp_served_before
        assert not found.tp_active


def test_only_the_tiers_own_processes_count_as_holders_of_gpu_memory() -> None:
    memories = GpuMemories(gpus=(gpu(0, pids=(7, 8)), gpu(1, pids=(9,)), gpu(2, pids=None)))
    assert holders(memories, [8, 100]) == {"GPU-0": [8]}


def test_silence_is_counted_from_the_last_answer() -> None:
    def at(second: float, tokens: float | None) -> TokenSample:
        return TokenSample(at_s=second, tokens=tokens, held=None if tokens is None else 1)

    assert silence_s([]) == 0
    assert silence_s([at(0, None), at(1, 5)]) == 0
    assert silence_s([at(0, None), at(1, 5), at(2, None), at(6, None)]) == 4
    assert silence_s([at(0, None), at(9, None)]) == 9


@pytest.mark.parametrize(
    ("why", "word", "wanted", "expected", "warning"),
    [
        ("it is first although triage prefers another", verdict(chosen=3), "auto", ["GPU-1+", "GPU-1", "GPU-3"], ""),
        ("its GPU is faulty", verdict(chosen=3, sick=(1,)), "auto", ["GPU-3", "GPU-0", "GPU-2"], "GPU 1 is faulty"),
        ("lost links do not matter", verdict(chosen=3, sick=(1,), component="nvlink"), "auto",
         ["GPU-1+", "GPU-1", "GPU-3"], ""),
        ("another GPU was requested", verdict(chosen=3), "2", ["GPU-2", "GPU-2"], "another GPU was requested"),
    ],
)  # fmt: skip
def test_the_standby_is_woken_first_unless_its_gpu_is_ruled_out(
    why: str, word: Verdict, wanted: str, expected: list[str], warning: str
) -> None:
    choice = choose_gpus(tier(), FOUR, word, wanted=wanted, limit_percent=80, standby_on="GPU-1")
    tries = [f"{candidate.gpu}{'+' if candidate.wakes else ''}" for candidate in choice.candidates]
    assert tries == expected, why
    not_woken = [text for text in choice.warnings if "is not woken" in text]
    assert bool(not_woken) == bool(warning)
    assert warning in " ".join(not_woken)


def test_a_new_standby_avoids_the_gpus_of_the_tier_that_it_stands_by_for() -> None:
    choice = choose_gpus(tier(), FOUR, None, limit_percent=80, used_by_tp={"GPU-0", "GPU-1", "GPU-2"})
    assert choice.candidates[0].gpu == "GPU-3"
