"""What holds for every page: bounds, addresses, and errors that people can read."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.settings import ServerSettings
from tests.support.api import api
from tests.support.gallery import Gallery
from tests.support.html_pages import BROWSER, Page

PREFIX = "/ml/modelpress"


@pytest.fixture
def pages(gallery: Gallery) -> list[str]:
    """The address of every kind of page."""
    jobs = gallery.hang()
    compared = f"/page/compare?job={jobs['trained']}&job={jobs['plain']}"
    fixed = ["/page", "/page/new", compared, "/problems", "/problems/quality_gate", "/page/jobs/job_0", "/nowhere"]
    return [*fixed, *(f"/page/jobs/{job}" for job in jobs.values())]


def test_a_page_may_use_nothing_but_this_services_files(browser: TestClient, pages: list[str]) -> None:
    for path in pages:
        response = browser.get(path)
        page = Page.of(response.text)
        policy = response.headers["Content-Security-Policy"]

        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert page.values("style") == []
        assert page.of_tag("style") == []
        assert all("src" in script for script in page.of_tag("script"))
        assert not [name for _, found in page.elements for name in found if name.startswith("on")]


def test_every_id_is_there_once(browser: TestClient, pages: list[str]) -> None:
    for path in pages:
        ids = Page.of(browser.get(path).text).values("id")
        assert sorted(ids) == sorted(set(ids)), path


def test_every_field_has_a_name_that_is_read_out(browser: TestClient) -> None:
    page = Page.of(browser.get("/page/new").text)
    labelled = set(page.values("for"))
    fields = [each for tag in ("input", "select", "textarea") for each in page.of_tag(tag)]

    assert {each["id"] for each in fields if "id" in each} <= labelled
    assert [each for each in fields if each.get("type") not in ("hidden", "checkbox") and "id" not in each] == []


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize("sent_on", ["", PREFIX], ids=["stripped", "kept"])
def test_every_link_stays_below_the_path_of_the_proxy(
    settings: ServerSettings, engine: Engine, pages: list[str], sent_on: str, prefix: str
) -> None:
    with api(settings.model_copy(update={"root_path": PREFIX})) as client:
        client.headers.update(BROWSER)
        for path in pages:
            page = Page.of(client.get(sent_on + prefix + path).text)
            links = [*page.values("href"), *page.values("src"), *page.values("action"), *page.values("hx-get")]
            outside = [link for link in links if not link.startswith((PREFIX + prefix, "#"))]
            assert outside == []
            assert client.get(page.values("src")[0].replace(PREFIX, sent_on, 1)).status_code == 200
        led = client.get(f"{sent_on}{prefix}/", follow_redirects=False)
        assert led.headers["Location"] == f"{PREFIX}{prefix}/page"


def test_the_cookie_lies_below_the_path_of_the_proxy(settings: ServerSettings, engine: Engine) -> None:
    with api(settings.model_copy(update={"root_path": PREFIX}), is_open=False) as client:
        client.headers.update(BROWSER)
        asked = client.get("/page?state=failed", follow_redirects=False)
        out = client.post("/page/sign-out", follow_redirects=False)

    assert asked.headers["Location"] == f"{PREFIX}/page/sign-in?next=%2Fml%2Fmodelpress%2Fpage%3Fstate%3Dfailed"
    assert f"Path={PREFIX}/page" in out.headers["Set-Cookie"]


def test_the_front_door_leads_browsers_to_the_page_and_programs_to_the_documentation(browser: TestClient) -> None:
    assert browser.get("/").url.path == "/page"
    assert browser.get("/", headers={"Accept": "*/*"}).url.path == "/docs"


def test_the_document_of_the_api_lists_no_page(browser: TestClient) -> None:
    paths = browser.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path.startswith(("/page", "/problems"))] == []


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nowhere", 404, "There is nothing at this address"),
        ("/page/jobs/job_0", 404, "There is no such job"),
        ("/jobs/job_0", 404, "There is no such job"),
        ("/page?state=odd", 422, "The request is not valid"),
        ("/page?colour=red", 422, "there is no such query parameter"),
        ("/page/jobs/job_0/cancel", 405, "The address does not know this method"),
    ],
)
def test_an_error_is_a_page_for_a_browser_and_a_document_for_a_program(
    browser: TestClient, path: str, status: int, text: str
) -> None:
    seen = browser.get(path)
    assert (seen.status_code, seen.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert text in Page.of(seen.text).text
    assert seen.headers["X-Request-Id"]

    read = browser.get(path, headers={"Accept": "*/*"})
    assert (read.status_code, read.headers["Content-Type"]) == (status, "application/problem+json")


def test_a_fault_of_the_service_is_a_page(browser: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("secret inside")

    monkeypatch.setattr(browser.app.state.service, "get", broken)
    response = browser.get("/page/jobs/job_1")

    assert response.status_code == 500
    assert "The service has failed" in Page.of(response.text).text
    assert "secret" not in response.text


def test_head_of_a_page_is_answered(browser: TestClient) -> None:
    assert browser.head("/page").status_code == 200
    missing = browser.head("/page/jobs/job_0")
    assert (missing.status_code, missing.content) == (404, b"")


@pytest.fixture
def assets(browser: TestClient) -> Iterator[list[str]]:
    page = Page.of(browser.get("/page").text)
    yield [link for link in (*page.values("href"), *page.values("src")) if "/static/" in link]


def test_the_files_of_the_page_may_be_kept(browser: TestClient, assets: list[str]) -> None:
    assert len(assets) >= 7
    for asset in assets:
        response = browser.get(asset)
        assert response.status_code == 200
        assert "immutable" in response.headers["Cache-Control"]
    assert browser.get(assets[0].rpartition("/")[0] + "/../rendering.py").status_code == 404
