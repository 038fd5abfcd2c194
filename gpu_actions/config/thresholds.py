"""The limits of triage, in one frozen model that is a section of the settings.

Each field states its unit and the source of its default: NVIDIA's DCGM and Xid documentation, the runbook's "fewer than 18
active links" and "QPS down more than 30 %", or measurements on a 2xH100 host (docs/triage.md).
"""

from typing import Self

from pydantic import Field, model_validator

from gpu_actions.models import Frozen


class TriageThresholds(Frozen):
    """Limits of every check, and the deadlines of the collectors."""

    window_s: float = Field(
        default=3.0, ge=0.2, le=120, description="seconds between the two readings of a counter"
    )
    since_s: float = Field(
        default=900,
        ge=1,
        le=604_800,
        description="seconds of kernel log that count (default: 15 min before)",
    )
    accept_unknown: tuple[str, ...] = Field(
        default=(),
        description="rules whose missing evidence this host accepts, e.g. ['kernel_log.unread'] in a container; of a rule "
        "about many fields, one field that does not exist here: ['gpu.unread:recovery_action']",
    )

    # deadlines
    nvml_stall_s: float = Field(
        default=2.0,
        gt=0,
        le=60,
        description="seconds one NVML call may take before the driver counts as hung (a GPU's sweep: 30 ms on H100)",
    )
    metrics_timeout_s: float = Field(
        default=2.0, gt=0, le=30, description="seconds for one scrape of /metrics"
    )
    completion_deadline_s: float = Field(
        default=4.0, gt=0, le=120, description="seconds for the synthetic completion of a few tokens"
    )
    completion_tokens: int = Field(
        default=2, ge=1, le=64, description="tokens that the synthetic completion asks for"
    )
    golden_budget_s: float = Field(
        default=1.5, gt=0, le=60, description="seconds for the golden prompts, as many as fit in"
    )
    ras_timeout_s: float = Field(
        default=2.5,
        gt=0,
        le=30,
        description="seconds for one answer of NCCL RAS; it waits 1 s for silent ranks itself",
    )
    stacks_timeout_s: float = Field(
        default=3.0, gt=0, le=30, description="seconds for all py-spy dumps together"
    )
    router_timeout_s: float = Field(
        default=1.0, gt=0, le=30, description="seconds for the router's admin socket"
    )
    kernel_log_max_bytes: int = Field(
        default=4 * 1024 * 1024,
        ge=4096,
        le=256 * 1024 * 1024,
        description="bytes of kernel log read, from its end",
    )

    # links, P2P and PCIe
    links_missing: int = Field(
        default=1,
        ge=1,
        le=64,
        description="missing NVLinks on a GPU from which the tier should fall back (runbook: fewer than 18 active)",
    )
    nvlink_replay_delta: int = Field(
        default=1,
        ge=1,
        description="replay or recovery errors on a link within the window that count (DCGM: 1)",
    )
    nvlink_crc_per_s: float = Field(
        default=100,
        gt=0,
        description="CRC flit errors per second on a link above which it is bad (DCGM: 100)",
    )
    nvlink_effective_ber: float = Field(
        default=1e-12,
        gt=0,
        lt=1,
        description="bit error rate of an NVLink 5 after correction, above which it is expected to fail",
    )
    pcie_replay_per_min: float = Field(
        default=31, gt=0, description="PCIe replays per minute above which a Gen5 x16 slot is suspicious"
    )

    # thermals and memory
    temperature_watch_c: int = Field(
        default=87,
        ge=30,
        le=120,
        description="degrees C; used if the GPU does not report its own slowdown temperature",
    )
    temperature_margin_c: int = Field(
        default=3, ge=0, le=50, description="degrees C below the GPU's own slowdown temperature that count"
    )
    straggler_share: float = Field(
        default=0.85, gt=0, le=1, description="a busy GPU below this share of its peers' clock is a straggler"
    )
    clock_low_share: float = Field(
        default=0.6, gt=0, le=1, description="share of its maximum clock below which a busy GPU is too slow"
    )
    ecc_correctable_delta: int = Field(
        default=100, ge=1, description="corrected ECC errors within the window from which a finding is made"
    )

    # serving
    stalled_fall_back_s: float = Field(
        default=30,
        gt=0,
        description="seconds without a token, under a running request and a failed completion, that need no second source",
    )
    starting_s: float = Field(
        default=1200,
        ge=0,
        description="seconds after its start in which a tier that does not listen is still loading",
    )
    crash_loop_restarts: int = Field(
        default=3, ge=2, description="automatic restarts within crash_loop_s that are a crash loop"
    )
    crash_loop_s: float = Field(
        default=1800,
        ge=60,
        description="seconds within which restarts count together (a large tier loads for minutes)",
    )
    completion_slow_factor: float = Field(
        default=3, gt=1, description="synthetic completion slower than its baseline by this factor"
    )
    completion_slow_ms: float = Field(default=3000, gt=0, description="milliseconds; used without a baseline")
    ttft_slow_factor: float = Field(default=2, gt=1, description="mean TTFT over its baseline by this factor")
    ttft_min_samples: int = Field(
        default=3, ge=1, description="requests within the window below which TTFT is not judged"
    )
    throughput_drop_percent: float = Field(
        default=30,
        gt=0,
        lt=100,
        description="drop of tokens/s under a queue, against the baseline (runbook: 30 %)",
    )
    router_queue: int = Field(
        default=32, ge=1, description="requests waiting at the router (its own limit is 32)"
    )
    idle_cpu_ratio: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="share of a core below which a rank counts as idle (on a host without GPUs)",
    )
    working_power_ratio: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="share of its power limit from which a GPU works; below it, full utilisation is a wait loop",
    )
    stranger_share_percent: int = Field(
        default=20,
        ge=1,
        le=100,
        description="utilisation of a tier's GPU by other processes from which it is called hogged",
    )

    # deep probe
    deep_deadline_s: float = Field(
        default=60, gt=0, le=600, description="seconds for the whole deep probe, children included"
    )
    deep_free_gib: float = Field(
        default=4.0, gt=0, le=64, description="free GiB that each GPU must have before the probe starts"
    )
    deep_message_mib: int = Field(
        default=256, ge=1, le=4096, description="MiB of the largest all-reduce message"
    )
    busbw_ratio: float = Field(
        default=0.7, gt=0, lt=1, description="all-reduce bus bandwidth below this share of the baseline"
    )
    p2p_ratio: float = Field(
        default=0.7, gt=0, lt=1, description="P2P copy of a pair below this share of the baseline"
    )
    gemm_ratio: float = Field(
        default=0.7, gt=0, lt=1, description="GEMM rate of a GPU below this share of the baseline"
    )
    memory_ratio: float = Field(
        default=0.7, gt=0, lt=1, description="a GPU's memory bandwidth below this share of the baseline"
    )
    host_link_ratio: float = Field(
        default=0.7,
        gt=0,
        lt=1,
        description="copies between host and GPU below this share of the baseline, or of what its slot can do",
    )

    @model_validator(mode="after")
    def _ratios_make_sense(self) -> Self:
        if self.stalled_fall_back_s <= self.metrics_timeout_s:
            raise ValueError(
                f"stalled_fall_back_s ({self.stalled_fall_back_s}) must be above metrics_timeout_s ({self.metrics_timeout_s})"
            )
        return self
