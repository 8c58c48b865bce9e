"""The codes that a job can fail with: all of them are known, explained and in one table."""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

import pytest
from pydantic import TypeAdapter

import app.sources
import workers.compression
from app.errors import TooManyModelsRead
from modelpress.contract.codes import FAILURES, FailureCode
from modelpress.contract.job import Failure
from modelpress.errors import ModelpressError, Refused
from modelpress.spec.errors import CompressionError


def modules_of(package: ModuleType) -> Iterator[ModuleType]:
    """Import and yield every module of a package, except those whose optional library is not installed."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            yield importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("app", "modelpress", "workers"):
                raise


def descendants(base: type) -> Iterator[type]:
    for child in base.__subclasses__():
        yield child
        yield from descendants(child)


def test_the_table_explains_every_code() -> None:
    assert FAILURES.keys() == set(FailureCode)
    for kind in FAILURES.values():
        assert kind.title and not kind.title.endswith(".")
        assert kind.explanation.endswith(".") and kind.way_out.endswith(".")


def test_only_causes_that_may_pass_are_retried() -> None:
    assert {code for code in FailureCode if code.kind.retryable} == {
        "compute_crashed",
        "compute_killed",
        "disk_full",
        "download_corrupted",
        "hub_unavailable",
        "storage_failed",
        "worker_lost",
    }


def test_every_error_of_the_compression_library_declares_a_known_code() -> None:
    assert list(modules_of(workers.compression))
    errors = set(descendants(CompressionError))
    assert errors
    for error in errors:
        assert vars(error).get("code") in set(FailureCode), f"{error.__name__} declares no code of FailureCode"


def test_every_error_that_a_fetch_can_meet_has_a_known_code() -> None:
    errors = {
        value
        for module in modules_of(app.sources)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ModelpressError)
    } - {Refused, TooManyModelsRead}  # the first is named as a type only; no fetch reads many models at once
    assert errors
    for error in errors:
        assert error.code in set(FailureCode), f"{error.__name__} has no code of FailureCode"


def test_a_failure_is_retryable_as_its_code_says() -> None:
    assert Failure.of(FailureCode.DISK_FULL, "full", attempt=1).retryable
    assert not Failure.of(FailureCode.DIVERGED, "diverged", attempt=1).retryable


@pytest.mark.parametrize("code", ["disk_full", "from_another_version"])
def test_a_failure_keeps_its_code_through_json_even_if_this_version_does_not_know_it(code: str) -> None:
    row = {"code": code, "message": "so it is", "stage": None, "retryable": True, "attempt": 2}
    assert Failure.model_validate(row).model_dump(mode="json") == row


def test_the_schema_of_a_failure_lists_the_known_codes() -> None:
    schema = TypeAdapter(Failure).json_schema()
    assert schema["$defs"]["FailureCode"]["enum"] == [code.value for code in FailureCode]
