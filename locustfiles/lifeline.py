"""The lifeline: a pipe whose other end whoever started Locust holds. When it is closed, this process ends.

So a load that a driver has started does not outlive it, however the driver went.
"""

from __future__ import annotations

import os
import signal
from typing import Final

import gevent
from gevent.socket import wait_read

END_AFTER_S: Final = 5.0


def hold(fd: int) -> None:
    """End this process when the other end of the pipe `fd` closes; a negative one is none."""
    if fd >= 0:
        gevent.spawn(_end_with, fd)


def _end_with(fd: int) -> None:
    wait_read(fd)  # nobody ever writes
    os.kill(os.getpid(), signal.SIGTERM)
    gevent.sleep(END_AFTER_S)
    os._exit(1)
