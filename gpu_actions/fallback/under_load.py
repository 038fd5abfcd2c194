"""A load test as part of a step: run in a child process, its figures as one line, its files as artifacts."""

from gpu_actions.action import StepContext
from gpu_actions.config import LoadPolicy
from gpu_actions.host import Tier
from gpu_actions.models import Artifact, Frozen, JsonObject


class Tested(Frozen):
    """What a load test gave. `outcome`: passed, failed (a limit was missed), void (it says nothing)."""

    outcome: str
    summary: str
    data: JsonObject
    artifacts: tuple[Artifact, ...]


async def load_test(context: StepContext, tier: Tier, *, url: str, policy: LoadPolicy, name: str) -> Tested:
    raise NotImplementedError
