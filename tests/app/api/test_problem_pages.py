"""The page of every problem and failure explains it, at the address that its document names."""

import html
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.api.problems import all_kinds
from app.settings import ServerSettings
from modelpress.contract.codes import FailureCode
from tests.support.api import api
from tests.support.service import service_settings


@pytest.fixture(scope="module")
def pages(servers: ServerSettings, migrated: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of one API for all tests: to make one for each takes longer than to read its page."""
    with api(service_settings(servers, tmp_path_factory.mktemp("pages"))) as client:
        yield client


@pytest.mark.parametrize("code", sorted(all_kinds().keys() - set(FailureCode)))
def test_every_kind_of_problem_has_a_page(pages: TestClient, code: str) -> None:
    response = pages.get(f"/problems/{code}")

    assert response.status_code == 200
    assert all_kinds()[code].title in html.unescape(response.text)


def test_the_problems_are_listed(pages: TestClient) -> None:
    page = pages.get("/problems").text

    assert all(f'href="/problems/{code}"' in page for code in (*all_kinds(), *FailureCode))


@pytest.mark.parametrize("code", FailureCode)
def test_every_code_that_a_job_can_fail_with_has_a_page(pages: TestClient, code: FailureCode) -> None:
    response = pages.get(f"/problems/{code}")

    assert response.status_code == 200
    page = html.unescape(response.text)
    assert all(text in page for text in (code.kind.title, code.kind.explanation, code.kind.way_out))
    assert ("is not tried again" in page) is not code.kind.retryable


@pytest.mark.parametrize("code", sorted(all_kinds()))
def test_every_page_explains_its_problem(pages: TestClient, code: str) -> None:
    kind = all_kinds()[code]
    failure = next((known.kind for known in FailureCode if known == code), None)
    assert kind.explanation or failure
    assert pages.get(f"/problems/{code}").text.count("<p>") >= 2
