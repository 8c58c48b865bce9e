"""Answers about jobs, kept until their job has changed: most clients that poll a job find it as it was."""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from fastapi import Request

from app.api.addresses import placed, root_of
from app.api.pace import pause_seconds
from app.jobs.service import JobService
from app.jobs.turns import Glance

MOST_ANSWERS = 1000


@dataclass(frozen=True)
class JobAnswer:
    """A job as it is sent."""

    version: str
    body: bytes
    headers: dict[str, str]


class JobAnswers:
    """The newest answer about each of the jobs that were asked for last."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.answers: OrderedDict[tuple[str, str], JobAnswer] = OrderedDict()

    def known(self, request: Request, job_id: str, seen: Glance) -> JobAnswer | None:
        """Return the answer that was given when the job looked as it does now."""
        answer = self.answers.get((root_of(request), job_id))
        return answer if answer is not None and answer.version == seen.version else None

    def fresh(self, request: Request, service: JobService, job_id: str, seen: Glance) -> JobAnswer:
        """Return a new answer about a job. Raises JobNotFound where it is gone.

        What is read may be newer than the glance. The next glance is then another one, so nothing is shown late.
        """
        job = placed(request, service.get(job_id, seen))
        body = job.model_dump_json().encode()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "Cache-Control": "private, no-cache"}
        if not job.state.has_ended:
            headers["Retry-After"] = str(pause_seconds(job))
        answer = JobAnswer(seen.version, body, headers)
        self.keep((root_of(request), job_id), answer)
        return answer

    def keep(self, key: tuple[str, str], answer: JobAnswer) -> None:
        """Keep an answer, and forget the one that was made first where there are too many."""
        with self.lock:
            self.answers.pop(key, None)
            self.answers[key] = answer
            if len(self.answers) > MOST_ANSWERS:
                self.answers.popitem(last=False)
