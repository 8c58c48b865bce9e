"""What the API knows of the servers that it needs, without asking them while a client waits."""

from dataclasses import dataclass
from functools import partial
from typing import Self

from sqlalchemy import Engine

from app.db import at_head, make_sessions
from app.errors import NotMigrated
from app.jobs.doorbell import Doorbell
from app.jobs.installation import claim_files
from app.probe import Probe
from app.settings import Settings
from app.storage import Storage

DATABASE_PAUSE_SECONDS = 0.5
BROKER_PAUSE_SECONDS = 2.0
PATIENCE_SECONDS = 1.0
"""A request that waits for a silent database is answered about this and the pause after it fell silent."""


@dataclass(frozen=True)
class Probes:
    """One probe for each server."""

    database: Probe
    broker: Probe

    @classmethod
    def of(cls, settings: Settings, engine: Engine, storage: Storage, doorbell: Doorbell) -> Self:
        """Return probes that look over connections of their own: `engine` must be used by nobody else."""
        check = DatabaseCheck(settings, engine, storage)
        return cls(
            Probe("database", check, pause_seconds=DATABASE_PAUSE_SECONDS, patience_seconds=PATIENCE_SECONDS),
            Probe("broker", doorbell.check, pause_seconds=BROKER_PAUSE_SECONDS, patience_seconds=PATIENCE_SECONDS),
        )

    def start(self) -> None:
        """Begin to look."""
        self.database.start()
        self.broker.start()

    def close(self) -> None:
        """Look no more."""
        self.database.close()
        self.broker.close()

    def wait(self, seconds: float) -> None:
        """Return when each has an answer, be it a bad one, or the time is over."""
        for judged in (self.database.judged, self.broker.judged):
            judged.wait(seconds)


class DatabaseCheck:
    """The database answers, has every migration, and is the one whose files the service has."""

    def __init__(self, settings: Settings, engine: Engine, storage: Storage) -> None:
        self.engine = engine
        self.claim = partial(claim_files, settings, make_sessions(engine), storage)
        self.claimed = False

    def __call__(self) -> None:
        """Raise what there is to raise where something is wrong."""
        if not at_head(self.engine):
            raise NotMigrated("the database lacks migrations; run 'modelpress migrate'")
        if not self.claimed:
            self.claim()
            self.claimed = True
