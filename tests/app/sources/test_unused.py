"""What was fetched is deleted only while nobody uses or makes it."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from app.sources.unused import delete, lock_of

OLD_SECONDS = 1000.0


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """A fetched file that was last used long ago, beside its lock."""
    final = tmp_path / "text.jsonl"
    final.write_text("{}\n")
    lock_of(final).touch()
    long_ago = time.time() - 2 * OLD_SECONDS
    os.utime(final, (long_ago, long_ago))
    return final


def test_what_was_not_used_for_long_is_deleted(fetched: Path) -> None:
    assert delete(fetched, OLD_SECONDS)
    assert not fetched.exists()


def test_what_a_job_has_used_since_it_was_looked_at_stays(fetched: Path) -> None:
    os.utime(fetched)
    assert not delete(fetched, OLD_SECONDS)
    assert fetched.exists()


def test_what_another_process_holds_stays(fetched: Path) -> None:
    with lock_of(fetched).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not delete(fetched, OLD_SECONDS)
    assert fetched.exists()
