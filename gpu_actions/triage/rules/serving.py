"""Rules on collectives, the engine and the router."""

from gpu_actions.triage.rules.hardware import CRIT, FALL_BACK, HEALTHY, INFO, LOOK, MISSING, OK, UNSURE, WATCH
from gpu_actions.triage.rules.rule import Rule, rule

TWO_SOURCES = "live hang: a flat token counter under running requests AND a second source"

SERVING_RULES: tuple[Rule, ...] = (
    rule("collective.ok", OK, HEALTHY, "none", "ranks live and no collective is stuck", "", "RAS, /proc"),
    rule(
        "collective.hang", CRIT, FALL_BACK, "nccl_hang",
        "no token under running requests, and ranks that are stopped, dead, mismatched or inside a collective",
        "Start the fallback; the evidence names the rank to look at.", TWO_SOURCES,
    ),
    rule(
        "collective.rank_frozen", CRIT, LOOK, "nccl_hang",
        "a rank is stopped (T) or blocked in the kernel (D), but no request waits for it yet",
        "The next request will hang: continue the process (kill -CONT) or fall back.", "/proc/PID/stat",
        when_broken=FALL_BACK,
    ),
    rule(
        "collective.rank_dead", CRIT, LOOK, "nccl_hang", "a rank is missing, a zombie or gone",
        "The tier cannot work without it: restart it or fall back.", "/proc/PID/stat", when_broken=FALL_BACK,
    ),
    rule(
        "collective.mismatch", WATCH, LOOK, "nccl_hang",
        "RAS shows operation counts that differ between ranks and did not move, though tokens flow or nothing runs",
        "Triage again with a longer window.", "NCCL RAS, two polls",
    ),
    rule(
        "collective.ras_missing", WATCH, LOOK, "nccl_hang", "RAS has no answer from a rank",
        "Look at that process; triage again.", "NCCL RAS",
    ),
    rule(
        "collective.ras_silent", INFO, HEALTHY, "unknown",
        "NCCL RAS did not answer: not an NCCL tier, RAS off, or its process is frozen", "", "NCCL RAS",
    ),
    rule(
        "collective.unread", MISSING, UNSURE, "engine_stalled",
        "tokens stand still under running requests and no second source could be read",
        "Run as root or as the tier's user, with the unit's pid, so that ranks can be looked at.", TWO_SOURCES,
    ),
    rule(
        "collective.ranks_unread", MISSING, LOOK, "unknown",
        "the tier's processes could not be looked at; the engine itself answers",
        "Give the unit's main pid (--pid).", "/proc",
    ),
    rule("serving.ok", OK, HEALTHY, "none", "the tier generates tokens", "", "synthetic completion, /metrics"),
    rule(
        "serving.down", CRIT, FALL_BACK, "engine_down",
        "the tier is meant to run but nothing listens, or its main process is gone",
        "Start the fallback, then read the engine's log.", "connection refused; process tree",
    ),
    rule(
        "serving.starting", WATCH, LOOK, "engine_down",
        "nothing listens yet, and the tier was started a short while ago: it still loads",
        "Wait for its readiness; triage again.", "process age", threshold="starting_s",
    ),
    rule(
        "serving.flat", WATCH, LOOK, "engine_stalled",
        "requests run but not a token was generated within the window; the engine still answers a completion, or was not asked",
        "A long prefill looks like this: triage again with a longer window.", "/metrics twice",
    ),
    rule(
        "serving.stalled", CRIT, UNSURE, "engine_stalled",
        "no token and no answer to a completion, but nothing says that a collective hangs",
        "Triage again; if it lasts, fall back or restart the tier.", "/metrics twice, synthetic completion",
        threshold="completion_deadline_s",
    ),
    rule(
        "serving.stalled_long", CRIT, FALL_BACK, "engine_stalled",
        "no token and no answer to a completion for so long that no other source is needed",
        "Start the fallback.", "/metrics twice, synthetic completion", threshold="stalled_fall_back_s",
    ),
    rule(
        "serving.unread", MISSING, UNSURE, "unknown", "the engine's counters could not be read, nor did a completion prove it",
        "Check the URL and that metrics are on.", "/metrics",
    ),
    rule(
        "serving.metrics_unread", MISSING, LOOK, "unknown",
        "the engine's counters could not be read; a completion proves that it generates",
        "Check that metrics are on: without them a hang is seen late.", "/metrics",
    ),
    rule(
        "serving.completion_error", CRIT, UNSURE, "engine_errors",
        "the completion was answered with an error, an empty or a broken stream",
        "Read the engine's log; triage again: if it lasts, restart the tier or fall back.", "synthetic completion",
    ),
    rule(
        "serving.completion_error_some", WATCH, LOOK, "engine_errors",
        "one completion failed while tokens flow for others", "Read the engine's log.", "synthetic completion",
    ),
    rule(
        "serving.overload", WATCH, LOOK, "serving_regression", "the engine sheds load (429 or 503)",
        "Lower the rate or wait; look at the queue.", "synthetic completion",
    ),
    rule(
        "serving.completion_rejected", MISSING, UNSURE, "unknown",
        "the engine rejects our completion (4xx): the probe is wrong, so service is unproved",
        "Check the model name and the API key in the settings.", "synthetic completion",
    ),
    rule(
        "serving.completion_late", WATCH, LOOK, "serving_regression",
        "the completion missed its deadline while tokens flow for others", "Look at queue and batch size.",
        "synthetic completion", threshold="completion_deadline_s",
    ),
    rule(
        "serving.completion_slow", WATCH, LOOK, "serving_regression", "the completion was much slower than it should be",
        "Compare with the hardware findings; look at the load.", "synthetic completion, baseline",
        threshold="completion_slow_factor",
    ),
    rule(
        "serving.ttft", WATCH, LOOK, "serving_regression", "the mean time to first token is far over its baseline",
        "Compare with the hardware findings; look at the load.", "/metrics twice, baseline", threshold="ttft_slow_factor",
    ),
    rule(
        "serving.throughput", WATCH, LOOK, "serving_regression",
        "under a queue, tokens per second are far below the baseline",
        "Compare with the hardware findings: with a link, PCIe or thermal finding it is the cause.",
        "fallback playbook: QPS down more than 30 %", threshold="throughput_drop_percent",
    ),
    rule(
        "serving.restarted", WATCH, LOOK, "engine_errors",
        "the token counter went backwards: the engine was started again within the window",
        "Read its log: why did it end?", "/metrics twice",
    ),
    rule(
        "serving.frozen_runs", WATCH, LOOK, "frozen_tier_runs", "a tier runs although it is frozen",
        "Find out who started it: it takes GPU memory from the tier that serves. /restore plan brings it back in order.",
        "the unit's driver; who listens on the engine's port",
    ),
    rule("serving.stopped", INFO, HEALTHY, "none", "the tier is not meant to run now", "", "target"),
    rule("router.ok", OK, HEALTHY, "none", "the router answers and has a usable server", "", "HAProxy admin socket"),
    rule(
        "router.down", CRIT, LOOK, "router_down", "the router does not answer: clients reach no tier",
        "Start the router; a fallback alone does not help.", "HAProxy admin socket",
    ),
    rule(
        "router.no_server", CRIT, LOOK, "router_down", "no server of the router's backend can take a request",
        "Give a tier that generates tokens its weight back.", "show servers state",
    ),
    rule(
        "router.tier_out", INFO, HEALTHY, "none", "this tier takes no new requests (drained, weight 0 or maintenance)",
        "", "show servers state",
    ),
    rule(
        "router.queue", WATCH, LOOK, "serving_regression", "many requests wait at the router",
        "Lower the rate, or shift weight to a tier with room.", "show stat", threshold="router_queue",
    ),
    rule(
        "router.unread", MISSING, LOOK, "unknown", "the router's admin socket could not be read",
        "Run triage as its owner or in its group.", "HAProxy admin socket",
    ),
)  # fmt: skip
