"""The page in a real browser: post, watch, compare, download, by mouse, keyboard and thumb."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.db import Sessions, make_sessions
from app.jobs import store
from app.jobs.store import Progress
from app.keys.setup import issue_key
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.access import KeyRequest
from tests.support.gallery import FILES, STAGES, Gallery, comparison
from tests.support.server import serving
from tests.support.service import delete_jobs, service_settings, tiny_recipe

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from tests.support.chromium import chromium, running_browser  # noqa: E402 - it imports playwright

pytestmark = pytest.mark.skipif(chromium() is None, reason="this machine has no Chromium")

PHONE = {"width": 390, "height": 844}
PATIENCE_MS = 60_000


@dataclass(frozen=True)
class Desk:
    """A service, a browser, and what there is to look at."""

    address: str
    settings: ServerSettings
    sessions: Sessions
    gallery: Gallery
    jobs: dict[str, str]
    browser: Any

    def finish(self, job_id: str) -> None:
        """End a job that was claimed as its worker would."""
        files = open_storage(self.settings.artifacts_url).publish(job_id, 1, self.gallery.package(job_id))
        with self.sessions.begin() as session:
            assert store.finish(session, job_id, 1, 1.3, comparison(1.3, 0.391, 0.722, 1.392), files)


@pytest.fixture(scope="module")
def desk(
    servers: ServerSettings, migrated: Engine, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Desk]:
    directory = tmp_path_factory.mktemp("desk")
    delete_jobs(migrated)
    settings, sessions = service_settings(servers, directory), make_sessions(migrated)
    tiny_recipe(tiny_model, directory / "models", directory / "texts")
    gallery = Gallery(settings, sessions, directory / "packages")
    with serving(settings) as address, running_browser() as browser:
        yield Desk(address, settings, sessions, gallery, gallery.hang(), browser)


@pytest.fixture
def page(desk: Desk, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A window, which must have nothing to complain of: no script error, nothing that the policy forbids."""
    context = desk.browser.new_context(base_url=desk.address, **getattr(request, "param", {}))
    context.set_default_timeout(PATIENCE_MS)
    window = context.new_page()
    complaints: list[str] = []
    window.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    window.on("pageerror", lambda error: complaints.append(str(error)))
    yield window
    context.close()
    assert complaints == []


def expect(locator: Any) -> Any:
    playwright.expect.set_options(timeout=PATIENCE_MS)
    return playwright.expect(locator)


def test_a_job_is_posted_with_an_estimate_while_one_types(desk: Desk, page: Any) -> None:
    page.goto("/")
    page.get_by_role("link", name="New job").last.click()
    page.fill("#model", "local:tiny")
    page.select_option("#method", "low_rank")
    page.click("summary:has-text('Everything else')")
    page.fill(
        "#more",
        '{"calibration": {"datasets": ["local:calibration.txt"], "sequences": 8, "length": 64},'
        ' "evaluation": {"datasets": ["local:evaluation.txt"], "window": 64, "max_tokens": 512}}',
    )
    page.fill("#target_ratio", "900")
    expect(page.locator("#fault-target_ratio")).to_contain_text("cannot be reached")
    page.fill("#target_ratio", "1.3")
    expect(page.locator("#estimate")).to_contain_text("It would be accepted.")
    expect(page.locator("#fault-target_ratio")).to_be_empty()
    page.get_by_role("button", name="Post the job").click()

    expect(page.locator("h1")).to_have_text("local:tiny")
    expect(page.locator(".now")).to_contain_text("Next in the team's queue")


def test_a_job_is_watched_to_its_end_without_loading_the_page(desk: Desk, page: Any) -> None:
    job = desk.gallery.post("default", 1, target_ratio=1.3, method="low_rank", distillation={"tokens": 65_536})
    page.goto(f"/page/jobs/{job}")
    page.evaluate("window.isTheSame = true")
    expect(page.locator(".badge").first).to_have_text("queued")
    page.click("summary:has-text('The whole recipe')")
    with desk.sessions.begin() as session:
        desk.gallery.claim(session, job)
        store.beat(session, job, 1, 3600, Progress("distill", 0.5, "half way", 90.0))
        desk.gallery.tell(session, job, STAGES[:6], ends=None, points=20)
    expect(page.locator(".now")).to_contain_text("half way")
    expect(page.locator("#loss canvas")).to_be_visible()
    expect(page.locator("#recipe pre")).to_be_visible()
    desk.finish(job)
    expect(page.locator(".badge").first).to_have_text("succeeded")
    expect(page.locator(".tiles")).to_contain_text("× 1.392")
    expect(page.locator("#poll")).to_have_count(0)
    assert page.evaluate("window.isTheSame") is True


def test_jobs_are_compared_by_keyboard(desk: Desk, page: Any) -> None:
    page.goto("/page")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator("#compare-button")).to_be_disabled()
    for name in ("trained", "plain"):
        page.locator(f"#pick-{desk.jobs[name]}").focus()
        page.keyboard.press("Space")
    expect(page.locator("#compare-button")).to_have_text("Compare 2 jobs")
    with page.expect_response(lambda response: "/page" in response.url):
        pass  # the list was looked at again, and what was chosen stays chosen
    page.locator("#compare-button").focus()
    page.keyboard.press("Enter")

    expect(page.locator("h1")).to_have_text("Compare")
    expect(page.locator("table.figures thead th")).to_have_count(2)
    expect(page.locator("td.best").first).to_contain_text("76.9 MB")


def test_a_file_and_the_whole_result_are_downloaded(desk: Desk, page: Any) -> None:
    job = desk.jobs["trained"]
    page.goto(f"/page/jobs/{job}")
    with page.expect_download() as one:
        page.get_by_role("link", name="model.safetensors").click()
    assert one.value.path().read_bytes() == FILES["model.safetensors"]
    with page.expect_download() as everything:
        page.get_by_role("link", name="Download all").click()
    assert everything.value.suggested_filename == f"{job}.tar"
    assert FILES["model.safetensors"] in everything.value.path().read_bytes()


def test_a_job_is_deleted_only_when_one_says_so_twice(desk: Desk, page: Any) -> None:
    job = desk.gallery.post("default", 80 * 3600, target_ratio=2)
    page.goto(f"/page/jobs/{job}")
    page.click("summary:has-text('Cancel')")
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator(".badge").first).to_have_text("cancelled")
    page.click("summary:has-text('Delete')")
    page.get_by_role("button", name="Delete the job").click()

    expect(page.locator("h1")).to_have_text("Jobs")
    expect(page.locator(f"#row-{job}")).to_have_count(0)


@pytest.mark.parametrize(
    "page", [{"viewport": PHONE, "color_scheme": scheme} for scheme in ("light", "dark")], indirect=True
)
def test_no_page_is_wider_than_a_phone(desk: Desk, page: Any) -> None:
    compared = "&".join(f"job={desk.jobs[name]}" for name in ("trained", "plain", "structure"))
    shown = [f"/page/jobs/{job}" for job in desk.jobs.values()]
    for path in ("/page", "/page/new", f"/page/compare?{compared}", "/problems", "/problems/quality_gate", *shown):
        page.goto(path)
        width, ground = page.evaluate(
            "[document.documentElement.scrollWidth, getComputedStyle(document.documentElement).backgroundColor]"
        )
        assert width <= PHONE["width"], path
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is page.evaluate(
            "matchMedia('(prefers-color-scheme: dark)').matches"
        )


def test_the_curve_of_a_sweep_is_drawn(desk: Desk, page: Any) -> None:
    page.goto(f"/page/jobs/{desk.jobs['sweep']}")
    expect(page.locator("[data-chart=curve] canvas")).to_have_count(2)


def test_a_key_opens_the_page_and_no_script_reads_it(desk: Desk, page: Any) -> None:
    token = issue_key(desk.sessions, "search", KeyRequest(name="browser")).token
    with serving(desk.settings, is_open=False) as address:
        page.goto(f"{address}/page/new")
        page.fill("#key", token)
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("New job")
        assert page.evaluate("document.cookie") == ""
        assert [cookie["sameSite"] for cookie in page.context.cookies()] == ["Strict"]
        page.set_content(f'<a href="{address}/page">from elsewhere</a>')
        page.click("a")
        expect(page.locator("h1")).to_have_text("Jobs")
        page.goto("about:blank")


def test_a_form_of_another_site_changes_nothing(desk: Desk) -> None:
    job = desk.jobs["queued"]
    page = desk.browser.new_page()
    page.set_content(f'<form method="post" action="{desk.address}/page/jobs/{job}/cancel"><button>win</button></form>')
    with page.expect_response(lambda response: response.request.method == "POST") as answered:
        page.click("button")
    assert answered.value.status == 403
    with desk.sessions() as session:
        found = store.get(session, job)
        assert found is not None and found.state == "queued"
    page.close()
