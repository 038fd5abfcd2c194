"""Wakes the generator at an absolute monotonic time with the kernel's precision.

Event loops round timers to a millisecond (libuv and epoll alike), which would make every request half a millisecond late; a
timerfd does not. Without timerfd the loop's own timer is used, and the lateness shows it.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from time import monotonic

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0
_TFD_TIMER_ABSTIME = 1


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    )


class PreciseTimer:
    """A single-shot timer that can be armed repeatedly. `callback` runs on the loop, never early."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        self._spec = _Itimerspec()
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
            if self._fd >= 0:
                self._reference = ctypes.byref(self._spec)
                self._loop.add_reader(self._fd, self._fired)

    def arm(self, at_s: float) -> None:
        """Call back at a monotonic time, at once when it has passed. Replaces an earlier arming."""
        if self._fd >= 0:
            seconds = int(at_s)
            self._spec.value_s = seconds
            self._spec.value_ns = max(1, int((at_s - seconds) * 1e9) + 1)  # 0 would disarm
            self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._reference, None)
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(max(0.0, at_s - monotonic()), self._callback)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # armed again in the meantime
        self._callback()

    def close(self) -> None:
        """Disarm for good."""
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
