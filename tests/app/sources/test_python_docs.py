"""Text that comes with Python: enough of it, and two parts that share nothing."""

import pytest

from app.sources.python_docs import documents, evaluation_documents, training_documents


def characters(documents: list[str]) -> int:
    return sum(map(len, documents))


@pytest.fixture(scope="module")
def training() -> list[str]:
    return training_documents()


@pytest.fixture(scope="module")
def evaluation() -> list[str]:
    return evaluation_documents()


def test_both_parts_are_long_enough_to_calibrate_and_to_measure(training: list[str], evaluation: list[str]) -> None:
    assert characters(training) > 600_000
    assert characters(evaluation) > 200_000


def test_no_document_is_in_both_parts_and_few_are_in_neither(training: list[str], evaluation: list[str]) -> None:
    assert not set(training) & set(evaluation)
    assert 0.95 * len(documents()) < len(training) + len(evaluation) <= len(documents())


def test_no_paragraph_of_some_length_is_in_both_parts(training: list[str], evaluation: list[str]) -> None:
    paragraphs = {paragraph for document in training for paragraph in document.split("\n\n")}
    repeated = [p for document in evaluation for p in document.split("\n\n") if p in paragraphs]
    assert max(map(len, repeated), default=0) < 100


def test_a_quarter_is_kept_for_evaluation(training: list[str], evaluation: list[str]) -> None:
    assert 0.2 < characters(evaluation) / (characters(evaluation) + characters(training)) < 0.3
