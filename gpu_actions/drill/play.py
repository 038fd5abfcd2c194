"""Play one fault on the drill tier: break it, diagnose it, fall back, mend it, restore, with the real plans and steps."""

import math
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from gpu_actions.action import ActionSpec, PlanRefused, PlanRequest, StepFailed
from gpu_actions.drill.faults import Breaker
from gpu_actions.drill.history import DrilledFault, DrilledStep
from gpu_actions.drill.site import clients, serve_with_tp
from gpu_actions.fallback.action import SPEC as FALLBACK
from gpu_actions.host import Host
from gpu_actions.models import Artifact, JsonObject, Verdict, VerdictKind
from gpu_actions.restore.action import SPEC as RESTORE
from gpu_actions.triage.action import SPEC as TRIAGE
from gpu_actions.walk import RunStep, StepEnd, WalkReport, walk

Report = Callable[[str, float | None], None]


@dataclass
class Play:
    """One fault played on the drill tier. `steps` and `artifacts` grow while it runs, also up to a failure."""

    host: Host
    fault: str
    workdir: Path
    report: Report
    steps: list[DrilledStep] = field(default_factory=list)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    phase_s: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    """The newest verdict, for the next plan."""
    diagnosis: Verdict | None = None
    """What triage said of the fault."""
    began_at: float = field(default_factory=time.time)

    async def run(self, *, detect_s: float) -> DrilledFault:
        """Play it. Raises StepFailed if a phase does not reach its end."""
        shutil.rmtree(self.workdir, ignore_errors=True)  # of an attempt that was killed
        breaker = Breaker(self.host.tp.unit, self.host.state_dir / "fault")
        try:
            self.report("start the drill tier", None)
            await breaker.mend()
            await serve_with_tp(self.host)
            async with clients(self.host):
                await self._phase("detect", self._detect(breaker, detect_s))
                await self._phase("fallback", self._walk(FALLBACK, {"reason": f"drill: {self.fault}"}))
                await breaker.mend()
                await self._phase("restore", self._walk(RESTORE, {"accept_no_baseline": True}))
        finally:
            await breaker.close()
        return self.record

    @property
    def record(self) -> DrilledFault:
        """Return what has been played so far."""
        said = self.diagnosis
        word = "" if said is None else f"{said.verdict.value.replace('_', ' ')}: {said.cause}"
        return DrilledFault(
            fault=self.fault,
            began_at=self.began_at,
            phase_s=self.phase_s,
            steps=tuple(self.steps),
            verdict=word,
        )

    async def _phase(self, name: str, work: Awaitable[None]) -> None:
        began = time.monotonic()
        await work
        self.phase_s[name] = round(time.monotonic() - began, 2)

    async def _detect(self, breaker: Breaker, limit_s: float) -> None:
        """Break the tier and run triage until it says fall back."""
        await breaker.break_(self.fault)
        deadline = time.monotonic() + limit_s
        while True:
            await self._walk(TRIAGE, {})
            if self.verdict is not None and self.verdict.verdict is VerdictKind.FALL_BACK:
                self.diagnosis = self.verdict
                return
            if time.monotonic() > deadline:
                word = "nothing" if self.verdict is None else self.verdict.summary
                raise StepFailed(
                    f"{self.fault} was not diagnosed within {limit_s:g} s: triage says {word}",
                    next_action="run /triage on the production host and compare: its rules may miss this fault",
                )

    async def _walk(self, spec: ActionSpec, options: JsonObject) -> None:
        request = PlanRequest(
            host=self.host,
            arguments=spec.arguments.model_validate(options),
            requester="drill",
            verdict=self.verdict,
            verdict_age_s=0.0 if self.verdict is not None else math.inf,
        )
        try:
            plan = await (spec.plan_start or spec.plan)(request)
        except PlanRefused as refused:
            raise StepFailed(f"{spec.name} was refused: {'; '.join(refused.problems)}") from refused
        expected = {step.id: step.expected_s for step in plan.steps}

        def began(move: RunStep) -> None:
            self.report(f"{self.fault}: {spec.name}: {move.step.title}", None)

        def ended(move: RunStep, end: StepEnd) -> None:
            outcome = end.outcome
            self.verdict = end.verdict or self.verdict
            for artifact in end.artifacts:
                self.artifacts[artifact.name] = artifact  # a repeated triage replaces its snapshot
            self.steps.append(
                DrilledStep(
                    action=spec.name,
                    step_id=outcome.step_id,
                    title=move.step.title,
                    status=outcome.status,
                    summary=outcome.summary,
                    attempt=outcome.attempt,
                    seconds=round(end.seconds, 2),
                    expected_s=expected.get(outcome.step_id),
                    at=time.time(),
                )
            )

        end = await walk(
            plan,
            self.host,
            run_id=f"{spec.prefix}-drill",
            workdir=self.workdir / spec.name,
            report=WalkReport(began=began, ended=ended),
        )
        if end.ended.status != "succeeded":
            last = end.last
            raise StepFailed(
                f"{self.fault}: {spec.name} {end.ended.status} at {end.ended.failed_step}: "
                + (last.outcome.summary if last else "no step ran"),
                next_action=last.outcome.next_action if last else "",
            )
