"""Dramatiq, as a program: noops on one Redis.

    python dramatiq_app.py enqueue N              # one by one: it has no call for many
    dramatiq dramatiq_app -p 3 -t 12              # the workers, until SIGTERM

PEER_URL is the Redis. Its own default middleware, and no result backend.
"""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker

dramatiq.set_broker(RedisBroker(url=os.environ["PEER_URL"]))


@dramatiq.actor
def noop() -> None:
    """Do nothing."""


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["enqueue", n]:
            for _ in range(int(n)):
                noop.send()
        case _:
            sys.exit(__doc__)
