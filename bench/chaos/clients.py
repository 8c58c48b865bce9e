"""Clients of the soak: they post, look, cancel and download at random, and write down what they were answered."""

import hashlib
import random
import threading
import time
from typing import Any

import httpx2

from bench.chaos.computing import FAILS, KIND, PLAIN, POISON, SLOW, WEIGHTS, weights
from bench.chaos.history import History
from modelpress.contract.recipe import Recipe

KINDS = {PLAIN: 12, SLOW: 4, FAILS: 1, POISON: 1}
"""How often a posted job is of each kind."""
PATIENCE_SECONDS = 30.0
"""A request that takes longer has no deadline. The service answers within about ten seconds, whatever is down."""
MOST_OPEN = 8
"""Jobs of one client that have not ended; it posts no more meanwhile."""


class Client(threading.Thread):
    """One client, with a random source of its own."""

    def __init__(self, number: int, url: str, history: History, lock: threading.Lock, seed: str) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.number, self.history, self.lock = number, history, lock
        self.random = random.Random(seed)  # noqa: S311 - nothing secret
        self.http = httpx2.Client(base_url=url, timeout=PATIENCE_SECONDS)
        self.over = threading.Event()
        self.open: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        self.posted = 0

    def run(self) -> None:
        """Act until told that it is over."""
        acts = (self.post, self.post, self.look, self.look, self.look, self.cancel, self.list, self.download)
        while not self.over.wait(self.random.uniform(0.05, 0.6)):
            self.random.choice(acts)()

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response | None:
        """Return the answer to a request, or None where the connection broke; both are written down."""
        begun = time.monotonic()
        try:
            answer = self.http.request(method, path, **more)
        except httpx2.TimeoutException:
            with self.lock:
                self.history.too_slow.append(f"{method} {path} was not answered in {time.monotonic() - begun:.0f} s")
            return None
        except httpx2.TransportError as error:
            with self.lock:
                self.history.answered[type(error).__name__] += 1
            return None
        with self.lock:
            self.history.answered[str(answer.status_code)] += 1
        return answer

    def recipe(self) -> Recipe:
        """Return the recipe of a new job; its seed decides the bytes that it ends with."""
        kind = self.random.choices(list(KINDS), list(KINDS.values()))[0]
        return Recipe.model_validate(
            {
                "model": "local:tiny",
                "target_ratio": 1.3,
                "method": "low_rank",
                "calibration": {"datasets": ["local:calibration.txt"], "sequences": 8, "length": 64},
                "evaluation": {"datasets": ["local:evaluation.txt"], "window": 64, "max_tokens": 512},
                "seed": self.random.randrange(2**32),
                "priority": self.random.choice([0, 0, 0, 1]),
                "metadata": {KIND: kind},
            }
        )

    def post(self) -> None:
        """Post a job, and again with the same key, until it is accepted; sometimes twice although it was."""
        if len(self.open) >= MOST_OPEN:
            return
        recipe = self.recipe()
        self.posted += 1
        key = f"{self.number}-{self.posted}"
        body = recipe.model_dump(mode="json", exclude_unset=True)
        with self.lock:
            self.history.expected[key] = hashlib.sha256(weights(recipe)).hexdigest()
        wanted = 1 + (self.random.random() < 0.2)
        while wanted and not self.over.is_set():
            answer = self.ask("POST", "/jobs", json=body, headers={"Idempotency-Key": key})
            if answer is not None and answer.status_code == httpx2.codes.ACCEPTED:
                job_id = answer.json()["id"]
                self.open[job_id] = key
                with self.lock:
                    self.history.answers.append((key, job_id))
                wanted -= 1
            elif answer is not None and answer.status_code not in (429, 503):
                with self.lock:
                    self.history.damaged.append(f"POST was answered {answer.status_code}: {answer.text[:200]}")
                return
            else:
                self.over.wait(0.3)

    def look(self) -> None:
        """Look at a job, and write down what is seen."""
        if not (known := [*self.open, *list(self.ended)[-20:]]):
            return
        job_id = self.random.choice(known)
        answer = self.ask("GET", f"/jobs/{job_id}")
        if answer is None or answer.status_code != httpx2.codes.OK:
            if answer is not None and answer.status_code != httpx2.codes.SERVICE_UNAVAILABLE:
                with self.lock:
                    self.history.damaged.append(f"GET {job_id} was answered {answer.status_code}")
            return
        job = answer.json()
        with self.lock:
            self.history.seen[self.number, job_id].append((job["state"], job["attempt"]))
        if job["state"] in ("succeeded", "failed", "cancelled") and job_id in self.open:
            self.ended[job_id] = self.open.pop(job_id)

    def cancel(self) -> None:
        """Cancel a job that has not ended, not too often."""
        if not self.open or self.random.random() < 0.6:
            return
        job_id = self.random.choice(list(self.open))
        with self.lock:  # before it is sent: the answer may be lost
            self.history.cancelled.add(job_id)
        self.ask("POST", f"/jobs/{job_id}/cancel")

    def list(self) -> None:
        """Read a page of jobs."""
        self.ask("GET", "/jobs", params={"limit": 20})

    def download(self) -> None:
        """Download the weights of a finished job in two ranges, and compare them."""
        if not self.ended:
            return
        job_id = self.random.choice(list(self.ended)[-20:])
        path = f"/jobs/{job_id}/artifacts/{WEIGHTS}"
        whole = b""
        for part in ("bytes=0-99999", "bytes=100000-"):
            answer = self.ask("GET", path, headers={"Range": part})
            if answer is None or answer.status_code != httpx2.codes.PARTIAL_CONTENT:
                return
            whole += answer.content
        with self.lock:
            found = hashlib.sha256(whole).hexdigest()
            if found != self.history.expected[self.ended[job_id]]:
                self.history.damaged.append(f"the weights of {job_id} were downloaded with the digest {found}")
            self.history.downloads += 1
