"""Moments that outlive kills, clock changes and reboots."""

import os
import subprocess
import sys
import time

from gpu_actions.system.clock import Moment, process_age_s

OTHER_BOOT = "00000000-0000-0000-0000-000000000000"


def test_within_a_boot_the_wall_clock_does_not_matter() -> None:
    now = Moment.now()
    set_forward = now.model_copy(update={"wall_s": now.wall_s - 86400})
    assert set_forward.seconds_ago() < 5


def test_across_a_reboot_the_wall_clock_decides_and_an_age_is_never_negative() -> None:
    before = Moment(boot_id=OTHER_BOOT, boot_s=1e9, wall_s=time.time() - 120)
    assert 119 < before.seconds_ago() < 130
    ahead = Moment(boot_id=OTHER_BOOT, boot_s=0, wall_s=time.time() + 3600)
    assert ahead.seconds_ago() == 0


def test_a_process_is_older_or_younger_than_a_moment() -> None:
    before = Moment.now()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        time.sleep(0.05)
        after = Moment.now()
        assert before.precedes_process(child.pid)
        assert not after.precedes_process(child.pid)
        assert not before.precedes_process(os.getpid())
        assert (process_age_s(child.pid) or 0) >= 0.04
        of_another_boot = after.model_copy(update={"boot_id": OTHER_BOOT, "boot_s": 1e9})
        assert of_another_boot.precedes_process(child.pid)
        child.communicate(b"\n")
    assert not before.precedes_process(child.pid)
    assert process_age_s(child.pid) is None
