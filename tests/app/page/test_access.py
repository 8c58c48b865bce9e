"""Who may see and change what on the page: keys in a cookie, and nothing for other sites."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from app.db import Sessions
from app.keys.setup import issue_key
from app.settings import ServerSettings
from modelpress.contract.access import KeyRequest, Scope
from tests.support.api import api
from tests.support.gallery import Gallery
from tests.support.html_pages import BROWSER, Page

CHANGES = ("jobs", "estimate", "sign-in", "sign-out", "jobs/job_1/cancel", "jobs/job_1/retry", "jobs/job_1/delete")
BOTH = (Scope.READ, Scope.SUBMIT)


@dataclass(frozen=True)
class House:
    """A service that asks for keys, and a browser in front of it."""

    client: TestClient
    sessions: Sessions

    def key(self, team: str, *scopes: Scope) -> str:
        return issue_key(self.sessions, team, KeyRequest(name="test", scopes=frozenset(scopes or BOTH))).token

    def sign_in(self, team: str, *scopes: Scope) -> None:
        answer = self.client.post("/page/sign-in", data={"key": self.key(team, *scopes)})
        assert answer.url.path == "/page", answer.text


@pytest.fixture
def house(settings: ServerSettings, engine: Engine, sessions: Sessions) -> Iterator[House]:
    with api(settings, is_open=False) as client:
        client.headers.update(BROWSER)
        yield House(client, sessions)


def test_a_visitor_without_a_key_is_asked_for_one_and_led_back(house: House, gallery: Gallery) -> None:
    job = gallery.post("search", 10, target_ratio=2) if house.key("search") else ""
    asked = house.client.get(f"/page/jobs/{job}")
    assert asked.url.path == "/page/sign-in"
    (target,) = [each["value"] for each in Page.of(asked.text).of_tag("input") if each["name"] == "next"]

    led = house.client.post("/page/sign-in", data={"key": house.key("search"), "next": target})
    assert led.url.path == f"/page/jobs/{job}"
    assert "Team search" in Page.of(led.text).text


def test_the_cookie_is_for_the_page_alone(house: House) -> None:
    answer = house.client.post("/page/sign-in", data={"key": house.key("search")}, follow_redirects=False)
    bounds = {each.strip().lower() for each in answer.headers["Set-Cookie"].split(";")[1:]}

    assert bounds == {"httponly", "samesite=strict", "path=/page"}
    token = house.client.cookies["modelpress_key"]
    assert house.client.get("/jobs", headers={"Accept": "*/*"}).status_code == 401
    assert house.client.get("/jobs", headers={"Accept": "*/*", "Cookie": f"modelpress_key={token}"}).status_code == 401


@pytest.mark.parametrize("proto", ["https", "https, http"])
def test_behind_https_the_cookie_is_for_https(house: House, proto: str) -> None:
    answer = house.client.post(
        "/page/sign-in",
        data={"key": house.key("search")},
        headers={"X-Forwarded-Proto": proto},
        follow_redirects=False,
    )
    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("key", ["", "mp_none", f"mp_{'0' * 16}_{'x' * 43}", "a b", "é"])
def test_a_wrong_key_is_refused_beside_the_field(house: House, key: str) -> None:
    answer = house.client.post("/page/sign-in", data={"key": key})

    assert answer.status_code == 401
    assert "This key is unknown, expired or revoked." in Page.of(answer.text).text
    assert "Set-Cookie" not in answer.headers


@pytest.mark.parametrize(
    "target", ["https://evil.example/", "//evil.example", "/\\evil.example", "/docs", "/page\r\nX: y"]
)
def test_signing_in_leads_nowhere_but_to_the_page(house: House, target: str) -> None:
    data = {"key": house.key("search"), "next": target}
    answer = house.client.post("/page/sign-in", data=data, follow_redirects=False)
    assert answer.headers["Location"] == "/page"


def test_signing_out_forgets_the_key(house: House) -> None:
    house.sign_in("search")
    house.client.post("/page/sign-out")
    assert house.client.get("/page").url.path == "/page/sign-in"


def test_another_teams_job_does_not_exist(house: House, gallery: Gallery) -> None:
    house.sign_in("ads")
    house.key("search")
    job = gallery.hang("search")["trained"]

    for path in (f"jobs/{job}", f"jobs/{job}/curve", f"jobs/{job}/artifacts/config.json", f"jobs/{job}/checkpoint"):
        assert house.client.get(f"/page/{path}").status_code == 404
    for path in (f"jobs/{job}/pictures/plots/before_and_after.png", f"compare?job={job}", f"new?like={job}"):
        assert house.client.get(f"/page/{path}").status_code == 404
    for action in ("cancel", "retry", "delete"):
        assert house.client.post(f"/page/jobs/{job}/{action}").status_code == 404
    assert "No jobs yet" in Page.of(house.client.get("/page").text).text


def test_a_key_that_may_only_look_sees_no_buttons(house: House, gallery: Gallery) -> None:
    house.sign_in("search", Scope.READ)
    job = gallery.post("search", 10, target_ratio=2)

    page = Page.of(house.client.get(f"/page/jobs/{job}").text)
    assert [form["action"] for form in page.of_tag("form")] == ["/page/sign-out"]
    assert house.client.post(f"/page/jobs/{job}/cancel").status_code == 403
    assert house.client.get("/page/new").status_code == 403


def test_a_list_that_is_looked_at_again_without_a_key_loads_the_page(house: House) -> None:
    answer = house.client.get("/page", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["HX-Refresh"]) == (401, "true")


def test_a_link_on_another_site_leads_to_the_page_by_way_of_itself(house: House) -> None:
    house.sign_in("search")
    cookie = house.client.cookies.pop("modelpress_key") if "modelpress_key" in house.client.cookies else ""
    came = house.client.get("/page", headers={"Sec-Fetch-Site": "cross-site"})

    assert cookie
    assert [each.get("content") for each in Page.of(came.text).of_tag("meta") if "http-equiv" in each] == ["0"]


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize(
    "sent",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {},
    ],
)
def test_no_other_site_changes_anything(browser: TestClient, path: str, sent: dict[str, str]) -> None:
    del browser.headers["Sec-Fetch-Site"]
    answer = browser.post(f"/page/{path}", data={"model": "local:tiny"}, headers=sent)

    assert answer.status_code == 403
    assert "Another site has sent this" in Page.of(answer.text).text


@pytest.mark.parametrize(
    "sent",
    [
        {"Origin": "http://localhost"},
        {"Origin": "https://ml.example", "X-Forwarded-Host": "ml.example"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://ml.example"},
    ],
)
def test_the_page_itself_may_change_things(browser: TestClient, gallery: Gallery, sent: dict[str, str]) -> None:
    del browser.headers["Sec-Fetch-Site"]
    job = gallery.post("default", 10, target_ratio=2)
    assert browser.post(f"/page/jobs/{job}/cancel", headers=sent).status_code == 200


def test_a_team_that_asks_too_often_is_told_in_words(
    settings: ServerSettings, engine: Engine, sessions: Sessions
) -> None:
    with api(settings.model_copy(update={"requests_per_minute": 2}), is_open=False) as client:
        client.headers.update(BROWSER)
        House(client, sessions).sign_in("search")
        client.get("/page")
        answer = client.get("/page")

    assert (answer.status_code, answer.headers["Content-Type"]) == (429, "text/html; charset=utf-8")
    assert int(answer.headers["Retry-After"]) >= 1
    assert "Too many requests" in Page.of(answer.text).text
