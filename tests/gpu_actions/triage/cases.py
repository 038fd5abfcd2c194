"""All cases of the judgement: a name, how to build the host's snapshot, and the verdict and cause that must follow."""

from tests.gpu_actions.triage import cases_crashes, cases_deep, cases_gpus, cases_kernel_log, cases_serving

PARTS = (cases_serving, cases_crashes, cases_gpus, cases_kernel_log, cases_deep)
CASES = {name: case for part in PARTS for name, case in part.CASES.items()}
assert len(CASES) == sum(len(part.CASES) for part in PARTS), "two cases have one name"
