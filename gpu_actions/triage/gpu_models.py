"""What GPU models should have: links, link speed, and floors for the deep probe on a host without a baseline.

Links from NVIDIA's product briefs: 18 on H100, H200 and Blackwell, 12 on A100. The floors lie well between the two measured
states of a 2xH100 host: 256-331 GB/s over NVLink and 27.5 GB/s over PCIe.

The GEMM rate is what a good GPU reaches in bf16: 780-806 TFLOP/s were measured on H100 and H200; for the others it is about
80 % of the dense peak in NVIDIA's data sheets (B200: 65 %, unmeasured). The memory rate is 78 % of the data sheet's peak (H100
SXM 3350 GB/s, H200 4800, B200 8000, H20 4000, A100 2039 or 1555 with 40 GB, V100 900): a copy reads and writes.
"""

import re
from typing import NamedTuple

from gpu_actions.snapshot.collectors.nvml import GpuReading
from gpu_actions.snapshot.model import Snapshot


class ModelFacts(NamedTuple):
    """Facts of a GPU family; None if not known."""

    links: int
    link_mbps: int | None = None
    busbw_floor_gbps: float | None = None
    p2p_floor_gbps: float | None = None
    gemm_tflops: float | None = None
    memory_gbps: float | None = None


_BRIDGED = re.compile(r"PCIe|NVL\b|NVL$", re.IGNORECASE)
_FAMILIES: tuple[tuple[re.Pattern[str], ModelFacts], ...] = (
    (re.compile(r"\bG?B[23]00\b"), ModelFacts(18, 53125, 150, 150, 1450, 6240)),
    (re.compile(r"\bH200\b"), ModelFacts(18, 26562, 120, 100, 805, 3740)),
    (re.compile(r"\b(?:H100|GH200)\b"), ModelFacts(18, 26562, 120, 100, 805, 2610)),
    (re.compile(r"\bH20\b"), ModelFacts(18, 26562, 120, 100, 118, 3120)),
    (re.compile(r"\bH800\b"), ModelFacts(8, 26562, 60, 60, 805, 2610)),
    (re.compile(r"\bA100-SXM\d?-40GB"), ModelFacts(12, None, 80, 60, 250, 1210)),
    (re.compile(r"\bA100-SXM"), ModelFacts(12, None, 80, 60, 250, 1590)),
    (re.compile(r"\bA800-SXM"), ModelFacts(8, None, 50, 50, 250, 1590)),
    (re.compile(r"\bV100-SXM"), ModelFacts(6, None, 40, 30, None, 700)),
)


HOST_LINK_GBPS = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.97, 5: 3.94, 6: 7.56}
"""GB/s of one PCIe lane by its generation (PCI-SIG); copies of pinned memory reach about 85 % (55 of 63 GB/s on Gen5 x16)."""
HOST_LINK_SHARE = 0.85


def host_link_gbps(gpu: GpuReading) -> float | None:
    """Return what copies between the host and a GPU reach in its slot at full width; None if that is not known."""
    lane = HOST_LINK_GBPS.get(gpu.pcie_generation_max or 0)
    return None if lane is None or not gpu.pcie_width_max else lane * gpu.pcie_width_max * HOST_LINK_SHARE


def model_facts(name: str) -> ModelFacts | None:
    """Return the facts of NVML's product name: None for unknown models and for those whose links depend on bridges."""
    if _BRIDGED.search(name):
        return None
    return next((facts for pattern, facts in _FAMILIES if pattern.search(name)), None)


def expected_links(snapshot: Snapshot, gpu: GpuReading) -> int | None:
    """Return how many links a GPU should have, or None if it needs none.

    The settings decide, else its model, else the GPU of the same model with the most active links.
    """
    nvml = snapshot.nvml
    if snapshot.expected.links is not None or nvml is None:
        return snapshot.expected.links
    if max(nvml.count or 0, len(nvml.gpus)) < 2:
        return None  # a single GPU has no peer, and rented single GPUs have their links off
    facts = model_facts(gpu.name)
    if facts is not None:
        return facts.links
    return max((other.active_links for other in nvml.whole_gpus if other.name == gpu.name), default=0) or None
