"""What a start spent, read from lines copied from logs of vLLM and SGLang."""

import pytest

from gpu_actions.serving.registry import ENGINES
from gpu_actions.serving.startup_phases import describe_start, log_since, phases_of

VLLM = """\
INFO 10-28 13:26:58 [gpu_model_runner.py:2602] Starting to load model llama-70b...
(EngineCore_DP0 pid=9) (Worker_TP0 pid=11) INFO 10-28 13:27:29 [default_loader.py:267] Loading weights took 31.27 seconds
(EngineCore_DP0 pid=9) (Worker_TP1 pid=12) INFO 10-28 13:27:31 [default_loader.py:267] Loading weights took 32.90 seconds
(Worker_TP1 pid=12) INFO 10-28 13:27:33 [gpu_model_runner.py:2653] Model loading took 74.08 GiB and 35.612771 seconds
(Worker_TP0 pid=11) INFO 10-28 13:28:01 [monitor.py:34] torch.compile takes 14.67 s in total
(Worker_TP0 pid=11) INFO 10-28 13:28:29 [gpu_model_runner.py:3480] Graph capturing finished in 18 secs, took 0.20 GiB
(EngineCore_DP0 pid=9) INFO 10-28 13:28:30 [core.py:218] init engine (profile, create kv cache, warmup model) took 40.92 seconds
"""
VLLM_NEW = """\
[gpu_model_runner.py] Model loading took 74.08 GiB memory and 35.6 seconds
[core.py:355] init engine (profile, create kv cache, warmup model) took 87.24 s (compilation: 34.75 s)
"""
SGLANG = """\
[2026-05-15 08:39:02 TP0] Load weight begin. avail mem=78.50 GB
[2026-05-15 08:39:10 TP0] Load weight end. elapsed=8.01 s, type=Qwen3MoeForCausalLM, dtype=torch.bfloat16, avail mem=62.08 GB
[2026-05-15 08:39:11 TP1] Load weight end. elapsed=9.20 s, type=Qwen3MoeForCausalLM, dtype=torch.bfloat16, avail mem=62.08 GB
[2026-05-15 08:40:32 TP0] Capture cuda graph end. Time elapsed: 54.61 s. mem usage=1.93 GB. avail mem=8.16 GB.
"""


@pytest.mark.parametrize(
    ("kind", "log", "phases"),
    [
        ("vllm", VLLM, {"weights": 35.61, "compile": 14.67, "CUDA graphs": 18.0, "warm-up": 8.25}),
        ("vllm", VLLM_NEW, {"weights": 35.6, "warm-up": 87.24}),
        ("sglang", SGLANG, {"weights": 9.2, "CUDA graphs": 54.61}),
        ("sglang", "Capture target decode CUDA graph end. elapsed=16.40 s", {"CUDA graphs": 16.4}),
        ("openai", VLLM, {}),
        ("vllm", "", {}),
    ],
)
def test_the_phases_are_those_that_the_engines_own_log_names(
    kind: str, log: str, phases: dict[str, float]
) -> None:
    assert phases_of(log, ENGINES[kind].startup_phases) == phases


def test_an_earlier_start_in_the_same_log_does_not_count() -> None:
    before = "start-up: weights took 9.00 s\nINFO the end"
    log = f"{before}\nstart-up: weights took 1.50 s\n"
    phases = ENGINES["reference"].startup_phases
    assert phases_of(log_since(log, before[-12:]), phases) == {"weights": 1.5}


def test_the_line_names_each_phase_the_rest_and_what_came_from_disk() -> None:
    text = describe_start(61.2, {"weights": 35.6, "compile": 14.7}, 74.08)
    assert text == "61.2 s: weights 35.6 s, compile 14.7 s, the rest 10.9 s, 74.1 GiB read from disk"
    assert describe_start(61.2, {}, 74.08) == ""
