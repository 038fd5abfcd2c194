"""The profilers of a tier: the engine's own torch profiler, or Nsight Systems if its unit was launched under it.

Both write into CUPTI, which serves one at a time: so a unit under nsys is traced by nsys.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpu_actions.action import StepContext
from gpu_actions.host import Tier
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.trace import nsys

STOP_TIMEOUT_S = 660.0
"""An engine, and nsys too, may take ten minutes to write a trace."""


class Profiler(Protocol):
    """Starts and stops a trace of one tier. `folder` is where its files may be, None if that is not known."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> Path | None: ...

    async def start(self, *, max_iterations: int) -> None:
        """Start it. Raises EngineError, with the setting that would allow it."""

    async def stop(self) -> tuple[Path, ...]:
        """Stop it and return the files that it wrote. Raises EngineError."""

    async def stop_left_on(self) -> None:
        """Stop what an earlier process of ours may have left on. A trace that somebody else takes goes on."""


@dataclass(frozen=True)
class TorchProfiler:
    """The profiler of the engine's own HTTP server."""

    tier: Tier
    folder: Path | None

    @property
    def name(self) -> str:
        return f"{self.tier.engine.kind} profiler of tier {self.tier.name}"

    async def start(self, *, max_iterations: int) -> None:
        await self.tier.engine.start_profile(max_iterations=max_iterations)

    async def stop(self) -> tuple[Path, ...]:
        return await self.tier.engine.stop_profile()

    async def stop_left_on(self) -> None:
        with contextlib.suppress(EngineError):
            await self.tier.engine.stop_profile()


@dataclass(frozen=True)
class NsysProfiler:
    """A collection in the session that the unit was launched in. `mark` exists while it is ours."""

    session: nsys.Session
    output: Path
    mark: Path

    @property
    def name(self) -> str:
        return f"nsys, session {self.session.name}"

    @property
    def folder(self) -> Path:
        return self.output.parent

    async def start(self, *, max_iterations: int) -> None:
        """Start it; nsys counts no engine steps, so it is bounded in seconds and bytes only."""
        self.mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.mark.touch()
        try:
            await nsys.start(self.session, self.output)
        except EngineError:
            self.mark.unlink(missing_ok=True)
            raise

    async def stop(self) -> tuple[Path, ...]:
        if self.mark.exists():
            await nsys.stop(self.session, timeout_s=STOP_TIMEOUT_S)
            self.mark.unlink(missing_ok=True)
        report = self.output.with_name(f"{self.output.name}.nsys-rep")
        if report.is_file():
            return (report,)
        raw = report.with_suffix(".qdstrm")
        if raw.is_file():
            await nsys.import_raw(self.session, raw, report)
            return (report,)
        raise EngineError(f"nsys wrote no report to {self.folder}")

    async def stop_left_on(self) -> None:
        if self.mark.exists():
            with contextlib.suppress(EngineError):
                await nsys.stop(self.session, timeout_s=STOP_TIMEOUT_S)
            self.mark.unlink(missing_ok=True)


async def profiler_of(context: StepContext, tier: Tier) -> Profiler:
    """Return the profiler of a tier. Raises EngineError if its unit runs under an nsys that cannot be used from here."""
    chosen = context.host.config.trace.folder
    session = await nsys.session_of(tier)
    if session is None:
        return TorchProfiler(tier, chosen or tier.engine.profile_folder())
    folder = chosen or context.workdir / "nsys"
    mark = context.host.state_dir / "nsys" / f"{tier.name}.started"
    return NsysProfiler(session, folder / f"{context.run_id}_{tier.name}", mark)


def how_traced(tier: Tier) -> str:
    """Return how a tier is traced, for plans."""
    return f"through nsys if the unit was launched under it, else POST {tier.engine.url}/start_profile and /stop_profile"
