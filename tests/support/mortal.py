"""A worker that kills itself: `python -m tests.support.mortal POINT CHILDREN` computes jobs until it comes to a point.

CHILDREN is a directory with the package `workers` that its children run. Settings come from the environment.
"""

import os
import signal
import sys
import threading
from pathlib import Path

from app.db import make_engine, make_sessions
from app.settings import Settings
from app.storage.registry import open_storage
from workers import child, failpoints
from workers.failpoints import Point
from workers.supervisor import Supervisor


def main() -> None:
    """Compute one job, as far as the point."""
    last = Point(sys.argv[1])
    child.ROOT = Path(sys.argv[2])

    def die(reached: Point) -> None:
        if reached is last:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hook = die
    settings = Settings().completed()
    sessions = make_sessions(make_engine(settings.database_url))
    Supervisor(settings, sessions, open_storage(settings.artifacts_url), "mortal", threading.Event()).run()


if __name__ == "__main__":
    main()
