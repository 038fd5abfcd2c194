"""The brake as a table: which change of which host may start, and what people are told."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.fleet.brake import SICK_WITHIN_S, HostNow, common_cause, refusal, states
from bot.settings.model import PoolRule
from bot.store.records import Person, UserError
from gpu_actions.models import VerdictKind
from tests.bot.fleet.conftest import Site, bot_of, worker_of
from tests.bot.fleet.test_fleet import start
from tests.bot.toys import ONCALL, effects


def host(text: str) -> HostNow:
    """Read `a pool=chat zone=z1 down|changing|sick:cause[@age]`."""
    name, *words = text.split()
    labels = dict(word.split("=") for word in words if "=" in word)
    sick = next((word.partition(":")[2] for word in words if word.startswith("sick:")), "")
    cause, _, age = sick.partition("@")
    return HostNow(
        name=name,
        labels=labels,
        is_serving="down" not in words,
        changed_by="fb-2222" if "changing" in words else "",
        sick_s=float(age or 10) if sick else None,
        cause=cause,
    )


ONE = {"chat": PoolRule()}
LEAST_2 = {"chat": PoolRule(least_serving=2)}
TWO = {"chat": PoolRule(max_changing=2, least_serving=1)}

CASES = [
    # what is so, rules, is it automatic, what is said about a change of `a` (empty: it starts)
    (["a pool=chat", "b pool=chat"], {}, False, ""),
    (["a pool=chat", "b pool=chat changing"], {}, False, "b (fb-2222) is being changed, and at most 1 of the pool chat"),
    (["a pool=chat", "b pool=code changing"], {}, False, ""),
    (["a", "b changing"], {}, False, "at most 1 of the hosts without a pool"),
    (["a", "b pool=chat changing"], {}, False, ""),
    (["a pool=chat", "b pool=chat changing", "c pool=chat"], TWO, False, ""),
    (["a pool=chat", "b pool=chat changing", "c pool=chat changing"], TWO, False, "are being changed, and at most 2"),
    (["a pool=chat", "b pool=chat changing", "c pool=chat down"], TWO, False, "0 of the pool chat would serve (none)"),
    (["a pool=chat", "b pool=chat", "c pool=chat"], LEAST_2, False, ""),
    (["a pool=chat", "b pool=chat", "c pool=chat down"], LEAST_2, False, "without a, 1 of the pool chat would serve (b)"),
    (["a pool=chat down", "b pool=chat", "c pool=chat down"], LEAST_2, False, ""),  # nothing is lost
    (["a pool=chat", "b pool=chat", "c pool=code"], LEAST_2, False, "at least 2 must"),
    # more than half sick within five minutes: nothing by itself, but people may
    (["a pool=chat sick:nvlink_loss", "b pool=chat sick:nvlink_loss"], ONE, True, "nothing changes by itself"),
    (["a pool=chat sick:nvlink_loss", "b pool=chat sick:nvlink_loss"], ONE, False, ""),
    (["a pool=chat sick:nvlink_loss", "b pool=chat"], ONE, True, ""),
    (["a pool=chat sick:x", "b pool=chat sick:y", "c pool=chat", "d pool=chat"], ONE, True, ""),  # half is not more
    (["a pool=chat sick:x", "b pool=chat sick:y", "c pool=chat"], ONE, True, "2 of 3 hosts were judged sick"),
    (["a pool=chat sick:x", "b pool=chat sick:y@301", "c pool=chat"], ONE, True, ""),  # too long ago
    (["a pool=chat sick:x", "b pool=code sick:y"], ONE, True, ""),  # another pool
    (["a pool=chat sick:x"], ONE, True, ""),  # one host is no common cause
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: " | ".join(case[0]))
def test_a_change_starts_only_if_its_pool_can_bear_it(
    case: tuple[list[str], dict[str, PoolRule], bool, str],
) -> None:
    texts, rules, is_automatic, said = case
    why = refusal("a", [host(text) for text in texts], rules, is_automatic=is_automatic)
    assert bool(why) == bool(said), why
    assert said in why


def test_the_brakes_state_is_shown_before_anyone_is_refused() -> None:
    hosts = ["a pool=chat changing", "b pool=chat", "c pool=chat down", "d sick:x", "e sick:x"]
    assert states([host(text) for text in hosts], {"chat": PoolRule(least_serving=1)}) == [
        "hosts without a pool: 2 of 2 serve (at least 0), 0 of at most 1 are being changed. Nothing changes by itself: 2 of 2 "
        "hosts were judged sick within 5 minutes (d, e). Look for a common cause: fabric, driver, deploy, power. They share "
        "cause=x (2 sick, 0 not).",
        "pool chat: 2 of 3 serve (at least 1), 1 of at most 1 is being changed: a (fb-2222); a change of b, c would be refused",
    ]


GROUPS = [
    (["a zone=z1 sick:nvlink_loss", "b zone=z1 sick:nvlink_loss", "c zone=z2"],
     "They share cause=nvlink_loss (2 sick, 0 not), zone=z1 (2 sick, 0 not)"),
    (["a driver=580 zone=z1 sick:x", "b driver=580 zone=z2 sick:y", "c driver=570 zone=z1"],
     "They share driver=580 (2 sick, 0 not)."),
    (["a power=p1 sick:x", "b power=p1 sick:x", "c power=p1 sick:x", "d power=p1"],
     "They share cause=x (3 sick, 0 not), power=p1 (3 sick, 1 not)."),
    (["a zone=z1 sick:x", "b zone=z2 sick:y", "c zone=z3"], "No label is theirs alone."),
]  # fmt: skip


@pytest.mark.parametrize(("texts", "said"), GROUPS)
def test_what_the_sick_hosts_share_is_named(texts: list[str], said: str) -> None:
    sentence = common_cause([host(text) for text in texts])
    assert "Look for a common cause" in sentence
    assert said in sentence


HOSTS = st.lists(
    st.builds(
        HostNow,
        name=st.sampled_from("abcdef"),
        labels=st.sampled_from([{"pool": "chat"}, {"pool": "code"}, {}]),
        is_serving=st.booleans(),
        changed_by=st.sampled_from(["", "fb-2222"]),
        sick_s=st.none() | st.floats(0, 2 * SICK_WITHIN_S),
    ),
    min_size=1,
    unique_by=lambda one: one.name,
)


@given(HOSTS, st.integers(1, 3), st.integers(0, 3), st.booleans())
def test_no_sequence_of_allowed_changes_passes_the_limits(
    hosts: list[HostNow], most: int, least: int, is_automatic: bool
) -> None:
    rules = {name: PoolRule(max_changing=most, least_serving=least) for name in ("chat", "code", "")}
    for one in list(hosts):
        if one.changed_by or refusal(one.name, hosts, rules, is_automatic=is_automatic):
            continue
        hosts = [
            other.model_copy(update={"changed_by": "fb-3333"}) if other.name == one.name else other
            for other in hosts
        ]
        pool = [other for other in hosts if other.pool == one.pool]
        assert sum(bool(other.changed_by) for other in pool) <= most
        if one.is_serving:
            assert sum(other.is_serving and not other.changed_by for other in pool) >= least


async def test_a_second_host_of_a_pool_is_not_changed_while_the_first_one_is(site: Site) -> None:
    async with bot_of(site) as face, worker_of(site):
        run = await start(face.runs, script="hold:h")
        with pytest.raises(
            UserError, match=rf"toy was not started on other: toy \({run.id}\) is being changed"
        ):
            await start(face.runs, host="other", script="count:a")
        reading = await start(face.runs, "look", script="count:look")  # reading is not braked
        await face.runs.wait(reading.id, until=lambda run: run.status.final)
        # two of two hosts are judged sick: what starts by itself is stopped, people are not
        await face.runs.stop(run.id, by=ONCALL)
        await face.runs.wait(run.id, until=lambda run: run.status.final)
        triage = await start(face.runs, "triage", script="verdict:v")
        await face.runs.wait(triage.id, until=lambda run: run.status.final)
        real = face.store.last_verdict("toy", max_age_s=60)
        assert real is not None and real[0].verdict is VerdictKind.FALL_BACK
        face.store.last_verdict = lambda name, *, max_age_s: real  # type: ignore[method-assign]
        for who, allowed in (("monitor", False), ("U_ONCALL", True)):
            request = face.runs.start(
                action="toy",
                host="toy",
                requester=Person(id=who),
                options={"script": "count:b"},
                place=triage.place,
                dedupe_key=f"{who}:{time.time()}",
            )
            if allowed:
                started = await request
                await face.runs.wait(started.run.id, until=lambda run: run.status.final)
            else:
                with pytest.raises(UserError, match="Look for a common cause"):
                    await request
        assert effects(site.folder / "toy", "b") == [""]
