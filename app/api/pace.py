"""How often a client should look at a job."""

from app.contract.job import Job

LOOKS_PER_JOB = 20
SHORTEST_PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 30


def pause_seconds(job: Job) -> int:
    """Return the seconds after which there may be something new to see: some looks over what is left of the job."""
    pause = (job.seconds_left or 0) / LOOKS_PER_JOB
    return round(min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
