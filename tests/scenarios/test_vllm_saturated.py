"""A restore of the real vLLM on the CPU while its fallback, a real vLLM too, is saturated: `make test-vllm` (minutes).

Both tiers, HAProxy and the clients share this machine's cores, so the load is what tp can serve beside all that, and the
fallback's few places make it three times what the fallback can take.
"""

import asyncio
import time
from pathlib import Path

import pytest

from demo.traffic.schedule import Profile
from gpu_actions.restore.analysis import weights_for
from gpu_actions.restore.compared import FALLBACK
from tests.gpu_actions.conftest import MakeSite
from tests.gpu_actions.restore.test_restore import restore_plan
from tests.gpu_actions.site import Site, data_of, summary_of
from tests.scenarios.saturated import is_binomial, lost_text, servers_of, watched_weights
from tests.scenarios.vllm import VLLM, make_tiny_llama, vllm_argv, vllm_environment

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not VLLM, reason="vLLM is not installed: make test-vllm"),
]
STAGES = (5, 25, 50, 100)
PLACES, LONG_PLACES = 2, 1
PROFILE = Profile(requests_per_s=8, answer_tokens=(60, 120), patience_s=120)
PRESSURE = {
    "max_concurrent": PLACES + LONG_PLACES,
    "long_share": LONG_PLACES,
    "max_queue": 4,
    "queue_timeout_s": 2,
    "retry_after_s": 3,
}


async def vllm_site(make: MakeSite, folder: Path, **restore: object) -> Site:
    """Return a host whose tiers are vLLM; nothing runs on it yet but the router."""
    model = folder / "tiny-llama"
    await asyncio.to_thread(make_tiny_llama, VLLM, model)

    def engine(name: str, batch: int) -> dict[str, object]:
        # The two share this machine's cores, and a fallback is the weaker tier.
        nice = () if name == "tp" else ("nice", "-n", "5")
        argv = vllm_argv(model, name=name, alias="m", port=0, batch=batch)
        return {"kind": "vllm", "argv": (*nice, *argv)}

    # Else each binds a spinning thread to every core, and neither gets on beside the other.
    threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    site = await make(
        up=False,
        tp_engine=engine("tp", 64),
        fallback_engine=engine("fallback", PLACES + LONG_PLACES),
        unit={"env": {**vllm_environment(folder), **threads}, "restart": False},
        tp_tier={"ranks": 1},
        ready_timeout_s=400,
        router={"back_pressure": PRESSURE},
        # A model of random weights and bytes sometimes says nothing in four tokens, which is an empty answer.
        restore={
            "stages_percent": list(STAGES),
            "hold_s": 15,
            "keep_fallback_warm_s": 0,
            "load": {"duration_s": 5, "target_qps": 2, "max_new_tokens": 24},
            **restore,
        },
    )
    await site.host.router.ensure_running()
    return site


async def test_a_restore_of_vllm_beside_its_saturated_fallback_loses_no_request(
    site_with: MakeSite, tmp_path: Path
) -> None:
    site = await vllm_site(site_with, tmp_path)
    end = await site.run(await site.plan(skip_validation=True))
    assert end.ended.status == "succeeded", end
    async with watched_weights(site) as weights, site.real_traffic(PROFILE) as account:
        while len(account.refused) < 20:
            await asyncio.sleep(0.1)
        saturated = time.monotonic()
        end = await site.run(await restore_plan(site, without=()))
        await asyncio.sleep(1)
    for step in end.steps:
        print(f"{step.outcome.step_id} {step.seconds:.1f} s: {step.outcome.summary}")
    print(
        account.describe(),
        f"{account.longest_silence_s(saturated, account.last_token_at):.1f} s without a token, "
        f"sent {account.lateness_s():.1f} s late at most",
        sep="\n",
    )
    assert account.lost == [], lost_text(account)
    for answer in account.refused:
        assert answer.retry_after_s == PRESSURE["retry_after_s"], answer
    reached = [
        int(step.outcome.step_id[6:]) for step in end.steps if step.outcome.step_id.startswith("shift-")
    ]
    assert reached, end.steps[-1].outcome.summary
    for percent in reached:
        start, until = weights.span(
            weights_for(percent, tp_weight=100, fallback_weight=100, standby_weight=1)
        )
        asked = account.sent_between(start + 0.2, until - 0.2)
        served = servers_of(asked)
        print(f"{percent} %: {dict(served)} of {len(asked)} in {until - start:.0f} s")
        assert is_binomial(served["tp"], len(asked), percent / 100), f"{percent} % sent {served}"
    if end.ended.status != "succeeded":
        # On few cores tp can be the slower tier for its clients, and then the traffic belongs back on the fallback.
        assert end.ended.failed_step == f"shift-{reached[-1]}", end
        assert f"of {FALLBACK}. All traffic is back on the fallback" in summary_of(end, end.ended.failed_step)
        assert data_of(end, "stepback")["state"] == "fallback_serving"
        await site.check_serving("fallback")
        pytest.skip(
            f"the traffic was held, but tp was too slow here: {summary_of(end, end.ended.failed_step)}"
        )
    assert reached == list(STAGES)
    assert data_of(end, "finish")["state"] == "tp_serving"
    await site.check_serving("tp")
