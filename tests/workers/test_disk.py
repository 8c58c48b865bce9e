"""What an error of the operating system says about the worker's disk."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from workers.disk import is_disk_failure, storage_failure

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
OVER_QUOTA = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def copied(error: OSError) -> shutil.Error:
    """Return what shutil.copytree raises where copying one file failed with `error`."""
    return shutil.Error([("from", "to", str(error))])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FULL, "disk_full"),
        (OVER_QUOTA, "disk_full"),
        (copied(FULL), "disk_full"),
        (STALE, "storage_failed"),
        (copied(STALE), "storage_failed"),
        (OSError("no reason given"), "storage_failed"),
    ],
)
def test_a_full_disk_is_told_apart_from_a_broken_one(error: OSError, code: str) -> None:
    assert storage_failure(error).code == code


def test_the_failure_says_what_the_system_said_and_in_which_stage() -> None:
    failure = storage_failure(STALE, "fetch")
    assert os.strerror(errno.ESTALE) in failure.message
    assert failure.stage == "fetch"


@pytest.mark.parametrize(
    ("error", "about_the_disk"),
    [(FULL, True), (copied(OVER_QUOTA), True), (STALE, True), (FileNotFoundError(errno.ENOENT, "gone"), False)],
)
def test_an_error_of_the_program_is_none_of_the_disk(error: OSError, about_the_disk: bool) -> None:
    assert is_disk_failure(error) is about_the_disk


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_write_that_finds_no_space_is_recognised() -> None:
    with pytest.raises(OSError) as raised, Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")
    assert storage_failure(raised.value).code == "disk_full"
