"""What a job does where a model does not fit into memory: it streams, says what it did not measure, and succeeds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.jobs import done
from workers.messages import Assignment
from workers.stages.memory import holds, left, left_in_container
from workers.stages.meter import Meter


def test_a_model_that_fits_is_timed_and_writes(assignment: Assignment) -> None:
    metrics = done(assignment, Meter()).metrics.after
    assert metrics.prefill_tokens_per_second is not None
    assert metrics.decode_tokens_per_second is not None
    assert metrics.sample is not None
    assert metrics.peak_memory_bytes is not None
    assert metrics.peak_memory_bytes > 10**8


def test_one_that_does_not_fit_is_compressed_measured_and_verified_but_not_timed(assignment: Assignment) -> None:
    metrics = done(assignment.model_copy(update={"memory_bytes": 1}), Meter()).metrics
    assert metrics.ratio >= 1.19
    assert metrics.after.perplexity.keys() == {"local:b.txt"}
    assert metrics.after.prefill_tokens_per_second is None
    assert metrics.after.decode_tokens_per_second is None
    assert metrics.after.sample is None
    assert metrics.after.peak_memory_bytes is None


def test_what_is_left_ends_at_the_limit_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert left_in_container(tmp_path) == 600


def test_files_that_the_container_could_drop_do_not_count_as_taken(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\ninactive_file 500\nactive_file 200\n")
    assert left_in_container(tmp_path) == 600


@pytest.mark.parametrize("limit", ["max", None])
def test_without_a_limit_the_container_takes_nothing_away(limit: str | None, tmp_path: Path) -> None:
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("400")
    assert left_in_container(tmp_path) == 2**63


def test_what_is_left_of_an_operators_limit_is_less_what_the_process_has_taken() -> None:
    assert left(10**12) < 10**12 - 10**7


@pytest.mark.parametrize(("free", "fits"), [(2_501, True), (2_500, False)])
def test_on_a_gpu_its_own_memory_counts(free: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free - 100, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)
    inventory = SimpleNamespace(total_parameters=1000)
    model: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, inventory=inventory)
    context: Any = None
    assert holds(context, model) is fits
