"""What `inspect` shows of a container, and what is judged from it. Pure."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from gpu_actions.serving.units.container import ContainerUnit, judge_container, judge_visibility
from gpu_actions.serving.units.container_facts import facts_of


def shown(**changes: Any) -> dict[str, Any]:
    """Return what `docker inspect` 28 prints of a container, as far as it is read."""
    state = {
        "Status": "running", "Running": True, "Paused": False, "Restarting": False, "OOMKilled": False, "Dead": False,
        "Pid": 4711, "ExitCode": 0, "StartedAt": "2026-11-26T03:04:05.123456789Z", "FinishedAt": "0001-01-01T00:00:00Z",
    }  # fmt: skip
    host = {
        "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
        "ShmSize": 67108864,
        "IpcMode": "private",
    }
    return {
        "RestartCount": 4,
        "State": state | changes.get("state", {}),
        "HostConfig": host | changes.get("host", {}),
        "Config": {"Labels": {"a": "b"}},
    }


@pytest.mark.parametrize(
    ("state", "running", "paused", "pid"),
    [
        ({}, True, False, 4711),
        ({"Status": "paused", "Paused": True}, True, True, 4711),
        ({"Status": "restarting", "Restarting": True}, False, False, 4711),
        (
            {"Status": "exited", "Running": False, "Pid": 0, "ExitCode": 137, "OOMKilled": True},
            False,
            False,
            None,
        ),
        (
            {"Status": "created", "Running": False, "Pid": 0, "StartedAt": "0001-01-01T00:00:00Z"},
            False,
            False,
            None,
        ),
    ],
)
def test_the_state_of_a_docker_container(
    state: dict[str, Any], running: bool, paused: bool, pid: int | None
) -> None:
    facts = facts_of(json.loads(json.dumps(shown(state=state))))
    assert (facts.running, facts.paused, facts.pid, facts.restarts) == (running, paused, pid, 4)
    assert facts.restart_policy == "unless-stopped"
    assert facts.started_at_s is None or abs(facts.started_at_s - 1795662245.123) < 0.01


def test_too_little_shared_memory_is_a_warning_unless_it_is_shared_with_the_host() -> None:
    config = ContainerUnit(container="vllm")
    assert [check.name for check in judge_container("h.tp", config, facts_of(shown()))] == [
        "h.tp",
        "h.tp.shm",
    ]
    (_, none) = judge_container("h.tp", config, facts_of(shown(host={"IpcMode": "none", "ShmSize": 2**34})))
    assert (none.name, none.status, "no /dev/shm" in none.detail) == ("h.tp.shm", "warning", True)
    for host in ({"IpcMode": "host"}, {"ShmSize": 17179869184}):
        assert [check.name for check in judge_container("h.tp", config, facts_of(shown(host=host)))] == [
            "h.tp"
        ]


def test_ranks_that_this_program_cannot_see_or_read_are_found_by_doctor() -> None:
    config = ContainerUnit(container="vllm")

    def judged(pid: int) -> list[tuple[str, str]]:
        rows = judge_visibility("h.tp", config, facts_of(shown(state={"Pid": pid})))
        return [(row.name, row.status) for row in rows]

    assert judged(os.getpid()) == []
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert judged(process.pid) == [("h.tp.pid", "failed")]
    if os.geteuid() == 0:
        read = f"""
import os
from tests.gpu_actions.serving.units.test_container_facts import *
os.setuid(65534)
rows = judge_visibility("h.tp", ContainerUnit(container="vllm"), facts_of(shown(state={{"Pid": {os.getpid()}}})))
print([(row.name, row.status) for row in rows])
"""
        done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[('h.tp.pid', 'warning')]"


def test_a_name_cannot_be_an_option() -> None:
    with pytest.raises(ValueError, match="container"):
        ContainerUnit(container="--privileged")
