"""How often a client should look at a job, and how long it may wait for an answer."""

import re

from modelpress.contract.job import Job

LOOKS_PER_JOB = 20
SHORTEST_PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 30
LONGEST_WAIT_SECONDS = 30
WAIT = re.compile(r"(?:^|[,;\s])wait=([0-9]{1,9})(?:$|[,;\s])")


def pause_seconds(job: Job) -> int:
    """Return the seconds after which there may be something new to see: some looks over what is left of the job."""
    pause = (job.seconds_left or 0) / LOOKS_PER_JOB
    return round(min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))


def wait_seconds(prefer: str | None) -> int:
    """Return how long the header Prefer (RFC 7240) asks to wait for a change: 0 if it does not."""
    found = WAIT.search(prefer or "")
    return min(int(found[1]), LONGEST_WAIT_SECONDS) if found else 0
