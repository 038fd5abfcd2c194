"""Checks on NVLinks: how many are missing on which GPU, and what stands at their far end.

Missing links of several GPUs that end at one device point at that device: a switch, or one GPU that its peers lost.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.kernel_log import normal_pci
from gpu_actions.snapshot.collectors.nvml import GpuReading, LinkReading, NvmlReading
from gpu_actions.triage.checks.context import CheckContext, count, make_finding
from gpu_actions.triage.checks.gpus import name_of
from gpu_actions.triage.gpu_models import model_facts

ERRORS = ("replay", "recovery")
SLOW_SHARE = 0.95


class MissingLink(NamedTuple):
    """A link that should be active: its GPU, its number (None: not even reported) and its far end where known."""

    gpu: GpuReading
    number: int | None
    remote_kind: str | None
    remote: str | None


def usable_gpus(nvml: NvmlReading) -> list[GpuReading]:
    """GPUs whose links mean something: read, and not partitioned (MIG reports links as down)."""
    return [gpu for gpu in nvml.gpus if gpu.error is None and not gpu.mig]


def expected_links(context: CheckContext, gpu: GpuReading, nvml: NvmlReading) -> int | None:
    """Links that a GPU should have: by the settings, its model, or its best sister. None: links are not needed."""
    told = context.snapshot.expected.links
    if told is not None:
        return told
    if max(nvml.count or 0, len(nvml.gpus)) < 2:
        return None  # alone, a GPU has nobody to talk to, and rented single GPUs have their links off
    facts = model_facts(gpu.name)
    if facts is not None:
        return facts.links
    sisters = [other for other in usable_gpus(nvml) if other.name == gpu.name]
    best = max((sum(link.active is True for link in sister.links) for sister in sisters), default=0)
    return best or None


def check_nvlink(context: CheckContext) -> Iterator[Finding]:
    """Findings on links; none where none are expected."""
    nvml = context.snapshot.nvml
    if nvml is None or not context.has_gpus:
        return
    missing: dict[int, list[MissingLink]] = {}
    unread: list[GpuReading] = []
    judged = 0
    for gpu in usable_gpus(nvml):
        expected = expected_links(context, gpu, nvml)
        if not expected:
            continue
        if not gpu.links or any(link.active is None for link in gpu.links):
            unread.append(gpu)
        if gpu.links:
            judged += 1
            missing[gpu.index] = _missing(context, gpu, expected)
    findings = [*_shared_ends(nvml, [link for links in missing.values() for link in links])]
    for gpu in usable_gpus(nvml):
        if missing.get(gpu.index):
            findings.append(_of_gpu(context, gpu, missing[gpu.index]))
    if unread:
        reasons = {gpu.label: gpu.unread.get("links", "no link was reported") for gpu in unread}
        findings.append(
            make_finding(
                "nvlink.unread",
                f"links of {count(len(unread), 'GPU')} could not be read: {next(iter(reasons.values()))}",
                evidence={"reasons": reasons},
            )
        )
    findings += _errors(context, nvml)
    findings += _speed(nvml)
    yield from findings
    if judged and not findings:
        each = sorted(
            {sum(link.active is True for link in gpu.links) for gpu in usable_gpus(nvml) if gpu.links}
        )
        yield make_finding(
            "nvlink.ok", f"{count(judged, 'GPU')} with {'/'.join(map(str, each))} links active each"
        )


def _missing(context: CheckContext, gpu: GpuReading, expected: int) -> list[MissingLink]:
    known = context.baseline.remote_ends.get(gpu.uuid, {})
    down = [
        MissingLink(gpu, link.index, link.remote_kind, link.remote_pci or known.get(link.index))
        for link in gpu.links
        if link.active is False
    ]
    absent = max(0, expected - len(gpu.links))
    here = {link.index for link in gpu.links}
    for index in [number for number in range(expected) if number not in here][:absent]:
        down.append(MissingLink(gpu, index, None, known.get(index)))
    surplus = len(gpu.links) + absent - expected  # a board may report links that it does not wire
    return down[: max(0, len(down) - surplus)] if surplus > 0 else down


def _of_gpu(context: CheckContext, gpu: GpuReading, missing: list[MissingLink]) -> Finding:
    active = sum(link.active is True for link in gpu.links)
    numbers = [link.number for link in missing]
    ends = sorted({_end(link) for link in missing})
    evidence: dict[str, Any] = {
        "active": active,
        "missing": len(missing),
        "links": numbers,
        "remote_ends": ends,
        "gpu": gpu.index,
    }
    if active == 0:
        return make_finding(
            "nvlink.loss", f"{gpu.label} has no active NVLink", evidence=evidence, subject=name_of(gpu)
        )
    rule = "nvlink.partial" if len(missing) >= context.thresholds.links_missing else "nvlink.few_missing"
    listed = ", ".join(str(number) for number in numbers[:8]) + (" ..." if len(numbers) > 8 else "")
    return make_finding(
        rule,
        f"{gpu.label}: {active} of {active + len(missing)} links active; link {listed} down, to {', '.join(ends[:3])}",
        evidence=evidence,
        subject=name_of(gpu),
    )


def _end(link: MissingLink) -> str:
    kind = link.remote_kind or "unknown end"
    return f"{kind} {link.remote}" if link.remote else f"{kind} (hidden)"


def _shared_ends(nvml: NvmlReading, missing: list[MissingLink]) -> Iterator[Finding]:
    by_end: dict[str, list[MissingLink]] = {}
    for link in missing:
        if link.remote is not None:
            by_end.setdefault(normal_pci(link.remote), []).append(link)
    labels = {normal_pci(gpu.pci): gpu.label for gpu in nvml.gpus if gpu.pci}
    for end, links in sorted(by_end.items(), key=lambda item: -len(item[1])):
        gpus = sorted({link.gpu.index for link in links})
        if len(gpus) < 2:
            continue
        what = labels.get(end) or f"{links[0].remote_kind or 'device'} {end}"
        yield make_finding(
            "nvlink.shared_end",
            f"{count(len(links), 'missing link')} of GPUs {', '.join(map(str, gpus))} all end at {what}",
            evidence={
                "remote": end,
                "gpus": gpus,
                "links": {str(gpu): [link.number for link in links if link.gpu.index == gpu] for gpu in gpus},
            },
            subject=what,
        )


def _errors(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    window_s = nvml.window_s or context.snapshot.window_s
    for gpu in usable_gpus(nvml):
        bad = [row for link in gpu.links if (row := _growth(context, link, window_s))]
        if bad:
            worst = bad[0]
            counters = ", ".join(f"{value} {name}" for name, value in worst.items() if name != "link")
            yield make_finding(
                "nvlink.errors",
                f"{gpu.label} link {worst['link']}: {counters} errors within {window_s:.1f} s"
                + (f", and {len(bad) - 1} more links" if len(bad) > 1 else ""),
                evidence={"links": bad, "window_s": window_s},
                subject=name_of(gpu),
            )


def _growth(context: CheckContext, link: LinkReading, window_s: float) -> dict[str, int]:
    limits = context.thresholds
    found = {name: delta for name in ERRORS if (delta := link.delta(name) or 0) >= limits.nvlink_replay_delta}
    crc = link.delta("crc") or 0
    if crc / max(window_s, 0.001) > limits.nvlink_crc_per_s:
        found["crc"] = crc
    return {"link": link.index, **found} if found else {}


def _speed(nvml: NvmlReading) -> Iterator[Finding]:
    for gpu in usable_gpus(nvml):
        facts = model_facts(gpu.name)
        should = facts.link_mbps if facts is not None else None
        slow = [
            link
            for link in gpu.links
            if should
            and link.active
            and link.speed_mbps is not None
            and link.speed_mbps < should * SLOW_SHARE
        ]
        if slow:
            yield make_finding(
                "nvlink.slow",
                f"{gpu.label}: {count(len(slow), 'link')} at {slow[0].speed_mbps} MB/s, {should} expected",
                evidence={"links": [link.index for link in slow]},
                subject=name_of(gpu),
            )
