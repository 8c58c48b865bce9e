"""A database that fails while something is committed."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import Sessions


class Unreliable:
    """Sessions whose first transaction fails: before it is committed, or after, so that only its answer is lost."""

    def __init__(self, sessions: Sessions, *, committed: bool) -> None:
        self.sessions = sessions
        self.committed = committed
        self.failed = False

    def __call__(self) -> Session:
        return self.sessions()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        with self.sessions.begin() as session:
            yield session
            if not self.failed and not self.committed:
                self.failed = True
                raise OperationalError("COMMIT", {}, ConnectionError("the database went away"))
        if not self.failed:
            self.failed = True
            raise OperationalError("COMMIT", {}, ConnectionError("the answer was lost"))


class Demoted:
    """Sessions whose first transaction may only read, as on a server that is no longer the primary one."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.demoted = True

    def __call__(self) -> Session:
        return self.sessions()

    @contextmanager
    def begin(self) -> Iterator[Session]:
        with self.sessions.begin() as session:
            if self.demoted:
                self.demoted = False
                session.execute(text("SET TRANSACTION READ ONLY"))
            yield session
