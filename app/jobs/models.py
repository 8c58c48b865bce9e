"""The tables, as objects. `store.py` moves jobs, `listing.py` finds them, `turns.py` says which is next.

Indexes stand in `migrations/` alone: what they are made for, they say there."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Computed, ForeignKey, Identity
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class JobRow(Base):
    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("teams.name"))
    """The team whose job it is."""
    state: Mapped[str]
    stage: Mapped[str | None]
    progress: Mapped[float]
    detail: Mapped[str | None]
    seconds_left: Mapped[float | None]
    attempt: Mapped[int]
    """Number of the newest claim. It fences: a worker's statements carry the number it claimed with."""
    attempts_left: Mapped[int]
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    run_after: Mapped[datetime]
    rung_at: Mapped[datetime]
    waiting_since: Mapped[datetime | None]
    """Since when the job has been put off, again and again, because its worker's disk or store could not be used."""
    sparing: Mapped[bool] = mapped_column(server_default="false")
    """Whether an attempt ran out of memory, so that the next one has to make do with less."""
    recipe: Mapped[dict[str, Any]]
    model: Mapped[str | None] = mapped_column(Computed("recipe ->> 'model'", persisted=True))
    method: Mapped[str | None] = mapped_column(Computed("recipe -> 'method' ->> 'name'", persisted=True))
    device: Mapped[str | None] = mapped_column(Computed("recipe ->> 'device'", persisted=True))
    priority: Mapped[int | None] = mapped_column(
        Computed("coalesce((recipe ->> 'priority')::integer, 0)", persisted=True)
    )
    retry_of: Mapped[str | None]
    """The job whose work this one goes on with."""
    request_id: Mapped[str | None]
    """The request that posted the job."""
    source: Mapped[dict[str, Any]]
    achieved_ratio: Mapped[float | None]
    metrics: Mapped[dict[str, Any] | None]
    sweep: Mapped[list[dict[str, Any]] | None]
    error: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    queued_at: Mapped[datetime]
    running_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    succeeded_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]


class AttemptRow(Base):
    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str]
    device: Mapped[str | None]
    """The worker's device: cpu or gpu."""
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    resumed: Mapped[dict[str, Any] | None]


class InstallationRow(Base):
    """The single row that tells this database from every other one. A dump takes it along."""

    __tablename__ = "installation"

    id: Mapped[str] = mapped_column(primary_key=True)
    single: Mapped[bool] = mapped_column(unique=True, server_default="true")


class IdempotencyRow(Base):
    """The job that an owner has posted with an Idempotency-Key."""

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    job_id: Mapped[str] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE", deferrable=True, initially="DEFERRED")
    )
    created_at: Mapped[datetime]


class MetadataRow(Base):
    """A pair of a job's metadata, by which the job can be found."""

    __tablename__ = "job_metadata"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    value: Mapped[str]
    model: Mapped[str | None]
    method: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="queued")
    """The job's; a trigger keeps it so."""
    created_at: Mapped[datetime]


class EventRow(Base):
    """Something that happened to a job."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime]
    attempt: Mapped[int]
    kind: Mapped[str]
    data: Mapped[dict[str, Any]]


class WorkerRow(Base):
    """A worker, as it has last introduced itself."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]
    device: Mapped[str]
    labels: Mapped[list[str]] = mapped_column(JSONB)
    gpu: Mapped[str | None]
    """Name of the GPU; null for a CPU, and until the worker has seen it."""
    gpu_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[datetime]
    beat_at: Mapped[datetime]
    draining: Mapped[bool]


class UploadRow(Base):
    """A file of text that a team has brought along, or is about to."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(ForeignKey("teams.name"))
    name: Mapped[str]
    format: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    """What was announced; once the file is complete, what it is."""
    created_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]


class DeletionRow(Base):
    """A job or an upload that was deleted, until its files are."""

    __tablename__ = "deletions"

    job_id: Mapped[str] = mapped_column(primary_key=True)
    deleted_at: Mapped[datetime]


class ArtifactRow(Base):
    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    attempt: Mapped[int]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    media_type: Mapped[str]
