"""Text that comes with Python: enough of it, and two parts that share nothing."""

import pytest

from app.sources.python_docs import documents, evaluation_text, training_text


@pytest.fixture(scope="module")
def training() -> str:
    return training_text()


@pytest.fixture(scope="module")
def evaluation() -> str:
    return evaluation_text()


def test_both_parts_are_long_enough_to_calibrate_and_to_measure(training: str, evaluation: str) -> None:
    assert len(training) > 600_000
    assert len(evaluation) > 200_000


def test_every_document_is_in_exactly_one_part(training: str, evaluation: str) -> None:
    assert all((document in training) != (document in evaluation) for document in documents())


def test_a_quarter_is_kept_for_evaluation(training: str, evaluation: str) -> None:
    assert 0.2 < len(evaluation) / (len(evaluation) + len(training)) < 0.3
