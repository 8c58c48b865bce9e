"""Jobs in every state, as workers would have left them, with figures from bench/results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, update
from sqlalchemy.orm import Session

from app.db import Sessions
from app.jobs import posting, store
from app.jobs.models import AttemptRow, EventRow, JobRow, MetadataRow
from app.jobs.posting import NewJob
from app.jobs.roster import Introduction, beat
from app.jobs.store import Progress
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.codes import FailureCode
from modelpress.contract.event import EventKind
from modelpress.contract.job import Comparison, EvaluationProtocol, Failure, Metrics, Source, SweepResult
from modelpress.contract.recipe import Recipe

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEXT = "local:state-of-the-union.txt"
PARAMETERS = 134_515_008
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
FILES = {
    "README.md": b"# SmolLM2-135M-Instruct, 3.5 times smaller\n",
    "SHA256SUMS": b"0" * 64 + b"  model.safetensors\n",
    "compression_report.json": b"{}",
    "config.json": b"{}",
    "gguf/model.gguf": b"GGUF" + bytes(60_000),
    "model.safetensors": bytes(range(256)) * 400,
    "tokenizer.json": b"{}",
}
STAGES = (
    ("fetch", 4.0),
    ("inspect", 3.0),
    ("calibrate", 62.0),
    ("plan", 331.0),
    ("compress", 48.0),
    ("distill", 803.0),
    ("quantise", 412.0),
    ("write", 21.0),
    ("evaluate", 174.0),
    ("package", 9.0),
    ("verify", 33.0),
)


@dataclass
class Gallery:
    """The database and the store that the jobs are put into."""

    settings: ServerSettings
    sessions: Sessions
    directory: Path
    pictures: Mapping[str, bytes] = field(default_factory=lambda: {"plots/before_and_after.png": PIXEL})

    def hang(self, team: str = "default") -> dict[str, str]:
        """Put a job of each kind into the database, and return their ids by name."""
        distillation = {"tokens": 65_536, "datasets": ["local:wikitext2-valid.txt"]}
        formats = ["safetensors", "gguf"]
        made = {
            "queued": self.post(team, 60, target_ratio=4, device="gpu", metadata={"for": "edge"}),
            "running": self.running(team),
            "trained": self.finished(
                team,
                3,
                (3.5, 0.076, 0.830, 1.037),
                distillation=distillation,
                formats=formats,
                metadata={"for": "edge"},
            ),
            "sweep": self.swept(team),
            "plain": self.finished(team, 26, (3.0, 0.036, 0.882, 1.035), formats=formats),
            "failed": self.failed(team),
            "structure": self.finished(team, 50, (1.3, 0.391, 0.722, 1.392), method="low_rank", precision=16),
            "cancelled": self.cancelled(team),
        }
        with self.sessions.begin() as session:
            beat(session, Introduction("worker-1:41", "0.1.0", "cpu", ("cpu",)))
        return made

    def post(self, team: str, seconds_ago: float, **recipe: Any) -> str:
        """Post a job so long ago, and return its id."""
        wanted = Recipe.model_validate({"model": MODEL, "evaluation": {"datasets": [TEXT]}} | recipe)
        source = Source(
            reference=MODEL,
            revision="7e27bd9f95328f0f3b08261d1252705110c806f8",
            model_type="llama",
            parameters=PARAMETERS,
        )
        at = datetime.now(UTC) - timedelta(seconds=seconds_ago)
        job_id = f"job_{abs(hash((team, str(recipe), seconds_ago))) % 16**12:012x}{int(at.timestamp()) % 16**12:012x}"
        with self.sessions.begin() as session:
            posting.submit(session, NewJob(job_id, wanted, source, max_attempts=3, owner=team))
            session.execute(update(JobRow).where(JobRow.id == job_id).values(created_at=at, queued_at=at))
            session.execute(update(MetadataRow).where(MetadataRow.job_id == job_id).values(created_at=at))
        return job_id

    def claim(self, session: Session, job_id: str) -> None:
        """Let a worker take the job."""
        assert store.claim(session, job_id, "worker-1:41", lease_seconds=3600, device="cpu") is not None

    def running(self, team: str) -> str:
        """Return the id of a job that is being distilled."""
        job_id = self.post(
            team, 1_300, target_ratio=1.27, method="fusion", precision=16, distillation={"tokens": 262_144}
        )
        with self.sessions.begin() as session:
            self.claim(session, job_id)
            progress = Progress("distill", 0.46, "118,784 of 262,144 tokens, loss 0.5912", 412.0)
            assert store.beat(session, job_id, 1, 3600, progress) is not None
            self.tell(session, job_id, STAGES[:6], ends=None, points=58, steps=128)
        return job_id

    def finished(
        self,
        team: str,
        hours: float,
        outcome: tuple[float, float, float, float],
        failure: Failure | None = None,
        **recipe: Any,
    ) -> str:
        """Return the id of a job that has ended with this ratio, divergence, agreement and multiple of perplexity."""
        job_id = self.post(team, hours * 3600, target_ratio=outcome[0], **recipe)
        stages = [stage for stage in STAGES if stage[0] != "distill" or "distillation" in recipe]
        with self.sessions.begin() as session:
            self.claim(session, job_id)
            files = open_storage(self.settings.artifacts_url).publish(job_id, 1, self.package(job_id))
            assert store.finish(session, job_id, 1, outcome[0], comparison(*outcome), files, failure)
            self.tell(session, job_id, stages, ends=hours * 3600 - 5, points=128 if "distillation" in recipe else 0)
        return job_id

    def swept(self, team: str) -> str:
        """Return the id of a job with several ratios."""
        outcomes = (
            (2.0, 0.005, 0.955, 1.001),
            (3.0, 0.036, 0.882, 1.035),
            (3.5, 0.083, 0.821, 1.052),
            (4.0, 0.171, 0.752, 1.139),
        )
        job_id = self.post(
            team, 5 * 3600, target_ratio=[outcome[0] for outcome in outcomes], formats=["safetensors", "gguf"]
        )
        results = [
            SweepResult(
                target_ratio=each[0],
                achieved_ratio=each[0] + 0.0008,
                directory=f"{each[0]:g}",
                method="quantisation",
                metrics=comparison(*each),
            )
            for each in outcomes
        ]
        with self.sessions.begin() as session:
            self.claim(session, job_id)
            files = open_storage(self.settings.artifacts_url).publish(job_id, 1, self.package(job_id))
            assert store.finish(session, job_id, 1, 2.0, results[0].metrics, files, sweep=results)
            self.tell(session, job_id, [stage for stage in STAGES if stage[0] != "distill"], ends=5 * 3600 - 5)
        return job_id

    def failed(self, team: str) -> str:
        """Return the id of a job whose result misses its gate."""
        message = f"perplexity on {TEXT} is 1.39 times the original's, and the gate allows 1.1 times"
        failure = Failure.of(FailureCode.QUALITY_GATE, message, attempt=1, stage="evaluate")
        gate = {"evaluation": {"datasets": [TEXT], "gate": {"max_perplexity_ratio": 1.1}}}
        return self.finished(team, 30, (1.3, 0.391, 0.722, 1.392), failure, method="svd", precision=16, **gate)

    def cancelled(self, team: str) -> str:
        """Return the id of a job that was cancelled while it waited."""
        job_id = self.post(team, 75 * 3600, target_ratio=2.5, method="width", precision=16)
        with self.sessions.begin() as session:
            store.cancel(session, job_id)
        return job_id

    def package(self, job_id: str) -> Path:
        """Return a directory with the files of a result."""
        package = self.directory / job_id
        for name, content in (FILES | dict(self.pictures)).items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_bytes(content)
        return package

    def tell(
        self,
        session: Session,
        job_id: str,
        stages: Sequence[tuple[str, float]],
        ends: float | None,
        points: int = 0,
        steps: int = 128,
    ) -> None:
        """Write the history of a job that has ended so many seconds ago, or, without `ends`, goes on."""
        now = datetime.now(UTC)
        seconds = sum(taken for _, taken in stages)
        begins = now - timedelta(seconds=seconds + (ends or 0) - (0 if ends is not None else stages[-1][1] * 0.5))
        session.execute(delete(EventRow).where(EventRow.job_id == job_id))
        session.execute(update(AttemptRow).where(AttemptRow.job_id == job_id).values(started_at=begins))
        session.execute(update(JobRow).where(JobRow.id == job_id).values(running_at=begins))
        happened: list[tuple[datetime, EventKind, dict[str, Any]]] = [
            (begins - timedelta(seconds=2), EventKind.STATE, {"state": "queued"}),
            (begins, EventKind.STATE, {"state": "running", "worker": "worker-1:41"}),
        ]
        at = begins
        for name, taken in stages:
            happened.append((at, EventKind.STAGE, {"stage": name}))
            happened += loss_curve(at, taken, points, steps) if name == "distill" else []
            at += timedelta(seconds=taken)
        if ends is not None:
            happened.append((at, EventKind.STATE, {"state": "succeeded"}))
            session.execute(update(AttemptRow).where(AttemptRow.job_id == job_id).values(ended_at=at))
        rows = [{"job_id": job_id, "attempt": 1, "at": at, "kind": kind, "data": data} for at, kind, data in happened]
        session.execute(insert(EventRow).values(rows))


def loss_curve(
    at: datetime, seconds: float, points: int, steps: int
) -> list[tuple[datetime, EventKind, dict[str, Any]]]:
    """Return the first points of a loss that falls."""
    return [
        (
            at + timedelta(seconds=seconds * step / steps),
            EventKind.METRIC,
            {"step": step, "name": "loss", "value": 0.52 + 1.1 * math.exp(-step / 22) + 0.05 * math.sin(5.3 * step)},
        )
        for step in range(1, points + 1)
    ]


def comparison(ratio: float, divergence: float, agreement: float, multiple: float) -> Comparison:
    """Return measurements of a result that is so many times smaller."""
    before = Metrics(
        parameters=PARAMETERS,
        bytes=2 * PARAMETERS,
        perplexity={TEXT: 23.63},
        prefill_tokens_per_second=938.0,
        decode_tokens_per_second=18.7,
        peak_memory_bytes=614_900_000,
        sample="The capital of France is Paris, which lies on the Seine.",
    )
    after = before.model_copy(
        update={
            "parameters": PARAMETERS if ratio >= 2 else round(PARAMETERS / ratio),
            "bytes": round(2 * PARAMETERS / ratio),
            "perplexity": {TEXT: 23.63 * multiple},
            "kl_divergence": {TEXT: divergence},
            "top1_agreement": {TEXT: agreement},
            "prefill_tokens_per_second": 1152.0,
            "decode_tokens_per_second": 21.0,
            "peak_memory_bytes": 616_100_000,
        }
    )
    protocol = EvaluationProtocol(
        id="7c1e",
        corpus="0" * 64,
        tokenizer="1" * 64,
        tokens="2" * 64,
        window=1024,
        stride=1024,
        max_tokens=20_480,
        overlap=0.0,
    )
    return Comparison(before=before, after=after, protocols={TEXT: protocol})
