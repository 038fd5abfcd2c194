"""NVLinks: how many are missing on which GPU, and what is at their remote end.

Missing links of several GPUs that end at one device point to that device: a switch, or a GPU that its peers lost.
"""

from collections.abc import Iterator
from typing import NamedTuple

from gpu_actions.models import Finding
from gpu_actions.snapshot.collectors.nvml import GpuReading, LinkReading, NvmlReading
from gpu_actions.snapshot.kernel_log_lines import normal_pci
from gpu_actions.triage.check import Check, CheckContext, count
from gpu_actions.triage.gpu_models import expected_links, model_facts
from gpu_actions.triage.rule import CRITICAL, OK, UNKNOWN, WATCH, Rules, rule

RULES = Rules(
    rule("nvlink.ok", OK, "all expected links are active and have no new errors", source="NVML"),
    rule(
        "nvlink.loss", CRITICAL, "a GPU has no active NVLink left",
        "Fall back. Then check the fabric manager, and reset the GPU or its baseboard.", source="NVML link states",
        cause="nvlink_loss",
    ),
    rule(
        "nvlink.partial", CRITICAL, "a GPU has fewer active NVLinks than it should",
        "Fall back. The summary lists the links and their remote ends.",
        source="NVML link states; 18 links on H100, H200 and Blackwell", cause="nvlink_partial",
        threshold="links_missing",
    ),
    rule(
        "nvlink.shared_end", CRITICAL, "the missing links of several GPUs all end at one device: the fault is there",
        "Fall back. Then check that switch or peer first, not the GPUs.", source="remote ends compared across GPUs",
        cause="nvlink_partial", threshold="links_missing",
    ),
    rule(
        "nvlink.few_missing", WATCH, "links are missing, but fewer than the setting calls a fault",
        "Plan a reset of the GPU.", source="settings", cause="nvlink_partial", threshold="links_missing",
    ),
    rule(
        "nvlink.errors", WATCH,
        "a link had replays, recoveries, uncorrected or many CRC or symbol errors within the window",
        "Watch this link: if the errors go on, it will drop soon.", source="DCGM health watches; NVLink 5 fields",
        cause="nvlink_errors", threshold="nvlink_crc_per_s",
    ),
    rule(
        "nvlink.ber", WATCH, "a link's bit error rate after correction is high: errors are likely to follow",
        "Plan a reset of this GPU, then have the link's connector checked.", source="NVML field 220, NVLink 5",
        cause="nvlink_errors", threshold="nvlink_effective_ber",
    ),
    rule(
        "nvlink.slow", WATCH, "an active link runs below the speed of its GPU model",
        "Reset the GPU at the next quiet time.", source="NVML field 90: 26562 MB/s on H100, 53125 on NVLink 5",
        cause="nvlink_errors",
    ),
    rule(
        "nvlink.unread", UNKNOWN, "the state of links could not be read, so link loss cannot be excluded",
        "Update the driver or nvidia-ml-py; the reason is in the summary.", source="NVML",
    ),
)  # fmt: skip

ERRORS = (
    "replay",
    "recovery",
    "recovered",
    "recovery_failed",
    "effective_errors",
    "integrity_errors",
    "receive_errors",
)
"""Counters of which a few within the window count. NVLink 5 corrects symbol errors, as NVLink 4 corrects CRC errors."""
RATES = ("crc", "symbol_errors")
"""Counters that count by their rate."""
SLOW_SHARE = 0.95


class MissingLink(NamedTuple):
    """A link that should be active: its GPU, its number, and its remote end if known."""

    gpu: GpuReading
    number: int
    remote_kind: str | None
    remote: str | None


def check_nvlink(context: CheckContext) -> Iterator[Finding]:
    """Judge the links of all GPUs that should have some."""
    nvml = context.snapshot.nvml
    if nvml is None or not context.has_gpus:
        return
    missing: dict[int, list[MissingLink]] = {}
    unread: dict[str, str] = {}
    for gpu in nvml.whole_gpus:
        expected = expected_links(context.snapshot, gpu)
        if not expected:
            continue
        if not gpu.links or any(link.active is None for link in gpu.links):
            unread[gpu.label] = gpu.unread.get("links", "no link was reported")
        if gpu.links:
            missing[gpu.index] = _missing(context, gpu, expected)
    findings = [*_shared_ends(nvml, [link for links in missing.values() for link in links])]
    for gpu in nvml.whole_gpus:
        if missing.get(gpu.index):
            findings.append(_missing_on(context, gpu, missing[gpu.index]))
    if unread:
        findings.append(
            RULES.finding(
                "nvlink.unread",
                f"links of {count(len(unread), 'GPU')} could not be read: {next(iter(unread.values()))}",
                reasons=unread,
            )
        )
    findings += _errors(context, nvml)
    findings += _bit_errors(context, nvml)
    findings += _speed(nvml)
    yield from findings
    if missing and not findings:
        each = sorted({gpu.active_links for gpu in nvml.whole_gpus if gpu.links})
        yield RULES.finding(
            "nvlink.ok", f"{count(len(missing), 'GPU')} with {'/'.join(map(str, each))} active links each"
        )


def _missing(context: CheckContext, gpu: GpuReading, expected: int) -> list[MissingLink]:
    known = context.baseline.remote_ends.get(gpu.uuid, {})
    missing = [
        MissingLink(gpu, link.index, link.remote_kind, link.remote_pci or known.get(link.index))
        for link in gpu.links
        if link.active is False
    ]
    absent = max(0, expected - len(gpu.links))
    reported = {link.index for link in gpu.links}
    for index in [number for number in range(expected) if number not in reported][:absent]:
        missing.append(MissingLink(gpu, index, None, known.get(index)))
    surplus = len(gpu.links) + absent - expected  # a board may report links that it does not wire
    return missing[: max(0, len(missing) - surplus)] if surplus > 0 else missing


def _missing_on(context: CheckContext, gpu: GpuReading, missing: list[MissingLink]) -> Finding:
    active, numbers = gpu.active_links, [link.number for link in missing]
    ends = sorted({_end(link) for link in missing})
    evidence = {
        "active": active,
        "missing": len(missing),
        "links": numbers,
        "remote_ends": ends,
        "gpu": gpu.index,
    }
    if active == 0:
        return RULES.on_gpu(gpu, "nvlink.loss", "no active NVLink", **evidence)
    rule_id = "nvlink.partial" if len(missing) >= context.thresholds.links_missing else "nvlink.few_missing"
    listed = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
    text = f"{active} of {active + len(missing)} links active; link {listed} down, to {', '.join(ends[:3])}"
    return RULES.on_gpu(gpu, rule_id, text, **evidence)


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
        yield RULES.finding(
            "nvlink.shared_end",
            f"{count(len(links), 'missing link')} of GPUs {', '.join(map(str, gpus))} all end at {what}",
            remote=end,
            gpus=gpus,
            links={str(gpu): [link.number for link in links if link.gpu.index == gpu] for gpu in gpus},
            subject=what,
        )


def _errors(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    window_s = nvml.window_s or context.snapshot.window_s
    for gpu in nvml.whole_gpus:
        bad = [row for link in gpu.links if (row := _growth(context, link, window_s))]
        if bad:
            counters = ", ".join(
                f"{value} {name.removesuffix('_errors').replace('_', ' ')}"
                for name, value in bad[0].items()
                if name != "link"
            )
            yield RULES.on_gpu(
                gpu,
                "nvlink.errors",
                f"link {bad[0]['link']} had {counters} errors within {window_s:.1f} s"
                + (f", and {len(bad) - 1} more links" if len(bad) > 1 else ""),
                links=bad,
                window_s=window_s,
            )


def _growth(context: CheckContext, link: LinkReading, window_s: float) -> dict[str, int]:
    limits = context.thresholds
    found = {name: delta for name in ERRORS if (delta := link.delta(name) or 0) >= limits.nvlink_replay_delta}
    for name in RATES:
        grown = link.delta(name) or 0
        if grown / max(window_s, 0.001) > limits.nvlink_crc_per_s:
            found[name] = grown
    return {"link": link.index, **found} if found else {}


def _bit_errors(context: CheckContext, nvml: NvmlReading) -> Iterator[Finding]:
    """Find links that will fail: their bit error rate runs since the link came up, and grows before errors are counted."""
    for gpu in nvml.whole_gpus:
        rates = {link.index: link.effective_ber or 0.0 for link in gpu.links}
        bad = {index: rate for index, rate in rates.items() if rate > context.thresholds.nvlink_effective_ber}
        if bad:
            worst = max(bad, key=lambda index: bad[index])
            text = f"{count(len(bad), 'link')}, the worst is {worst} with {bad[worst]:.0e} after correction"
            yield RULES.on_gpu(gpu, "nvlink.ber", f"high bit error rate on {text}", rates=bad)


def _speed(nvml: NvmlReading) -> Iterator[Finding]:
    for gpu in nvml.whole_gpus:
        facts = model_facts(gpu.name)
        normal = facts.link_mbps if facts is not None else None
        slow = [
            link
            for link in gpu.links
            if normal
            and link.active
            and link.speed_mbps is not None
            and link.speed_mbps < normal * SLOW_SHARE
        ]
        if slow:
            yield RULES.on_gpu(
                gpu,
                "nvlink.slow",
                f"{count(len(slow), 'link')} at {slow[0].speed_mbps} MB/s, {normal} expected",
                links=[link.index for link in slow],
            )


NVLINK = Check(title="NVLinks", rules=RULES, reads=frozenset({"nvml"}), judge=check_nvlink)
