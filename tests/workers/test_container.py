"""How much memory a container leaves, by control groups of both versions."""

from pathlib import Path

import pytest

from workers.container import UNLIMITED, V1, V2, Version, left_in_container, oom_kills

WITHOUT_LIMIT = {V2: "max", V1: "9223372036854771712"}
ROOT = {V2: "", V1: "memory"}
MEMBERSHIP = {V2: "0::{}\n", V1: "3:cpu,cpuacct:/elsewhere\n2:memory:{}\n0::/elsewhere\n"}

both_versions = pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])


def write_group(directory: Path, version: Version, limit: str, used: int, droppable: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / version.limit).write_text(f"{limit}\n")
    (directory / version.used).write_text(f"{used}\n")
    (directory / "memory.stat").write_text(f"anon 200\n{version.droppable} {droppable}\nactive_file 200\n")


def left(mount: Path, version: Version, path: str = "/") -> int:
    membership = mount / "membership"
    membership.write_text(MEMBERSHIP[version].format(path))
    return left_in_container(mount, membership)


@both_versions
def test_what_is_left_ends_at_the_limit_of_the_container(tmp_path: Path, version: Version) -> None:
    write_group(tmp_path / ROOT[version], version, "1000", 400)
    assert left(tmp_path, version) == 600


@both_versions
def test_files_that_the_container_could_drop_do_not_count_as_taken(tmp_path: Path, version: Version) -> None:
    write_group(tmp_path / ROOT[version], version, "1000", 900, droppable=500)
    assert left(tmp_path, version) == 600


@both_versions
def test_the_tightest_limit_of_all_groups_around_the_process_counts(tmp_path: Path, version: Version) -> None:
    root = tmp_path / ROOT[version]
    write_group(root, version, WITHOUT_LIMIT[version], 5000)
    write_group(root / "job", version, "1000", 400)
    write_group(root / "job" / "worker", version, "2000", 300)
    assert left(tmp_path, version, "/job/worker") == 600


@both_versions
def test_a_path_that_the_container_does_not_see_leaves_what_it_sees(tmp_path: Path, version: Version) -> None:
    write_group(tmp_path / ROOT[version], version, "1000", 400)
    assert left(tmp_path, version, "/docker/0123") == 600


@both_versions
def test_without_a_limit_the_container_takes_nothing_away(tmp_path: Path, version: Version) -> None:
    write_group(tmp_path / ROOT[version], version, WITHOUT_LIMIT[version], 400)
    assert left(tmp_path, version) == UNLIMITED


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert left_in_container(tmp_path, tmp_path / "none") == UNLIMITED


def test_what_the_kernel_killed_for_want_of_memory_is_counted(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\noom_kill_other 8\n")
    assert oom_kills(vmstat) == 3
    assert oom_kills(tmp_path / "none") == 0
