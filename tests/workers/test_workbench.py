"""Durable results: found again, and never mistaken for results of something else."""

from pathlib import Path

import pytest

from workers.stages.workbench import Workbench, directory_identity


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "job_a"


def finish(bench: Workbench, name: str, content: str = "result") -> Path:
    directory = bench.begin(name)
    (directory / "file.txt").write_text(content)
    return bench.finish(name)


def test_a_later_attempt_finds_what_an_earlier_one_finished(root: Path) -> None:
    directory = finish(Workbench(root, 1, "inputs"), "plan")
    assert Workbench(root, 2, "inputs").finished("plan") == directory


def test_results_in_a_folder_are_not_taken_for_those_of_their_name_elsewhere(root: Path) -> None:
    bench = Workbench(root, 1, "inputs")
    directory = finish(bench.inside("ratio-1.5"), "plan")
    assert bench.finished("plan") is None
    assert Workbench(root, 2, "inputs").inside("ratio-1.5").finished("plan") == directory
    assert bench.inside("ratio-1.5").inside("").finished("plan") is None


def test_what_was_begun_and_not_finished_does_not_count(root: Path) -> None:
    bench = Workbench(root, 1, "inputs")
    (bench.begin("plan") / "file.txt").write_text("half")
    assert Workbench(root, 2, "inputs").finished("plan") is None


def test_a_result_of_other_inputs_does_not_count(root: Path) -> None:
    finish(Workbench(root, 1, "inputs"), "plan")
    assert Workbench(root, 2, "other inputs").finished("plan") is None


def test_a_damaged_result_does_not_count(root: Path) -> None:
    directory = finish(Workbench(root, 1, "inputs"), "plan")
    (directory / "file.txt").write_text("damage")
    assert Workbench(root, 2, "inputs").finished("plan") is None


def test_parts_are_found_across_attempts(root: Path) -> None:
    paths = []
    for attempt in (1, 2):
        bench = Workbench(root, attempt, "inputs")
        path = bench.begin("compress") / f"part-{attempt}"
        path.write_text("part")
        bench.finish_part(path)
        paths.append(path)
    third = Workbench(root, 3, "inputs")
    assert [third.finished_part("compress", f"part-{number}") for number in (1, 2, 3)] == [*paths, None]


def test_a_damaged_part_does_not_count(root: Path) -> None:
    bench = Workbench(root, 1, "inputs")
    path = bench.begin("compress") / "part-1"
    path.write_text("part")
    bench.finish_part(path)
    path.write_text("trap")
    assert bench.finished_part("compress", "part-1") is None


def recorded(bench: Workbench, part: str) -> Path:
    path = bench.begin("training") / part
    path.write_text("part")
    bench.finish_part(path)
    return path


def test_the_parts_of_all_attempts_are_listed_by_name(root: Path) -> None:
    for attempt, part in ((1, "b"), (2, "a"), (2, "b")):
        recorded(Workbench(root, attempt, "inputs"), part)
    (Workbench(root, 2, "inputs").begin("training") / "c").write_text("half")
    assert Workbench(root, 3, "inputs").parts("training") == ["a", "b"]


def test_a_part_is_discarded_with_what_earlier_attempts_have_of_it_but_not_later_ones(root: Path) -> None:
    benches = [Workbench(root, attempt, "inputs") for attempt in (1, 2, 3)]
    paths = [recorded(bench, "a") for bench in benches]
    benches[1].discard_part("training", "a")
    assert [path.exists() for path in paths] == [False, False, True]
    assert benches[0].finished_part("training", "a") == paths[2]


def test_a_replaced_file_changes_the_identity_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("a")
    before = directory_identity(tmp_path)
    (tmp_path / "weights").write_text("ab")
    assert directory_identity(tmp_path) != before
