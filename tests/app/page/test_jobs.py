"""The pages that show jobs: the list, one job, several side by side."""

from fastapi.testclient import TestClient

from app.db import Sessions
from app.jobs import store
from app.jobs.roster import Introduction, beat
from modelpress.contract.codes import FailureCode
from tests.support.gallery import PIXEL, Gallery
from tests.support.html_pages import Page


def shown(browser: TestClient, path: str) -> Page:
    response = browser.get(path)
    assert response.status_code == 200, response.text
    return Page.of(response.text)


def listed(page: Page) -> list[str]:
    """Return the jobs of a list."""
    return [each["value"] for each in page.of_tag("input") if each.get("name") == "job"]


def test_without_jobs_it_says_what_to_do(browser: TestClient) -> None:
    page = shown(browser, "/page")

    assert "No jobs yet. Name a model and how many times smaller it shall be under New job" in page.text
    assert page.values("href").count("/page/new") >= 1


def test_the_list_shows_jobs_of_every_state(browser: TestClient, gallery: Gallery) -> None:
    jobs = gallery.hang()
    page = shown(browser, "/page")

    assert [f"/page/jobs/{job}" in page.values("href") for job in jobs.values()] == [True] * len(jobs)
    assert "distill, 46 %, 7 min left" in page.text
    assert "quality_gate" in page.text


def test_a_filter_leaves_what_was_asked_for(browser: TestClient, gallery: Gallery) -> None:
    jobs = gallery.hang()
    page = shown(browser, "/page?state=failed&method=&model=&metadata=")

    assert listed(page) == [jobs["failed"]]
    assert "No job matches" in shown(browser, "/page?state=failed&method=width").text
    assert listed(shown(browser, "/page?metadata=for%3Dedge")) == [jobs["queued"], jobs["trained"]]


def test_older_jobs_are_a_link_away(browser: TestClient, gallery: Gallery) -> None:
    gallery.hang()
    (older,) = [href for href in shown(browser, "/page?limit=5").values("href") if "after=" in href]

    assert len(listed(shown(browser, older))) == 3


def test_it_says_that_nobody_serves_a_queue(browser: TestClient, gallery: Gallery, sessions: Sessions) -> None:
    job = gallery.post("default", 10, target_ratio=4, device="gpu")
    for path in ("/page", f"/page/jobs/{job}"):
        assert "Nobody serves this queue. 1 job waits for a worker with the label gpu" in shown(browser, path).text

    with sessions.begin() as session:
        beat(session, Introduction("worker-2:7", "0.1.0", "gpu", ("gpu",)))
    for path in ("/page", f"/page/jobs/{job}"):
        assert "Nobody serves this queue" not in shown(browser, path).text
    assert "Next in the team's queue" in shown(browser, f"/page/jobs/{job}").text


def test_a_running_job_is_looked_at_again_and_an_ended_one_is_not(browser: TestClient, gallery: Gallery) -> None:
    jobs = gallery.hang()

    assert shown(browser, f"/page/jobs/{jobs['running']}").values("hx-trigger") == ["every 2s"]
    assert shown(browser, f"/page/jobs/{jobs['trained']}").values("hx-trigger") == []


def test_a_running_job_shows_stage_detail_and_time_left(browser: TestClient, gallery: Gallery) -> None:
    page = shown(browser, f"/page/jobs/{gallery.hang()['running']}")

    assert "distill 118,784 of 262,144 tokens, loss 0.5912 46 % · 7 min left" in page.text
    assert [bar["value"] for bar in page.of_tag("progress")] == ["0.4600"]
    assert "yes" in page.values("data-live")


def test_a_finished_job_shows_figures_files_and_pictures(browser: TestClient, gallery: Gallery) -> None:
    job = gallery.hang()["trained"]
    page = shown(browser, f"/page/jobs/{job}")

    for text in ("76.9 MB from 269 MB", "0.076 nats per token", "83.0 %", "× 1.037", "3.50× smaller", "distill 13 min"):
        assert text in page.text
    (picture,) = [source for source in page.values("src") if "/pictures/" in source]
    assert browser.get(picture).content == PIXEL
    (model,) = [href for href in page.values("href") if href.endswith("/model.safetensors")]
    assert browser.get(model).content == bytes(range(256)) * 400
    assert browser.get(f"/page/jobs/{job}/checkpoint").headers["Content-Type"] == "application/x-tar"


def test_a_failed_job_says_why_and_what_to_do(browser: TestClient, gallery: Gallery) -> None:
    page = shown(browser, f"/page/jobs/{gallery.hang()['failed']}")

    assert "the gate allows 1.1 times" in page.text
    assert FailureCode.QUALITY_GATE.kind.way_out in page.text
    assert "/problems/quality_gate" in page.values("href")
    assert [form["action"].rpartition("/")[2] for form in page.of_tag("form")] == ["retry", "delete"]


def test_a_job_of_several_ratios_shows_each_and_a_curve(browser: TestClient, gallery: Gallery) -> None:
    page = shown(browser, f"/page/jobs/{gallery.hang()['sweep']}")

    assert "Every ratio" in page.text
    assert "Original 2× 3× 3.5× 4×" in page.text
    assert len(page.values("data-points")) == 2
    assert "[2.0008, 3.0008, 3.5008, 4.0008]" in page.values("data-points")[0]


def test_the_loss_curve_goes_on_behind_what_is_known(browser: TestClient, gallery: Gallery) -> None:
    path = f"/page/jobs/{gallery.hang()['running']}/curve"
    first = browser.get(path).json()

    assert [step for step, _ in first["points"]] == list(range(1, 59))
    assert browser.get(path, params={"after": first["next"]}).json() == {"points": [], "next": None}


def test_an_attempt_that_was_lost_is_told(browser: TestClient, gallery: Gallery, sessions: Sessions) -> None:
    job = gallery.post("default", 10, target_ratio=2)
    with sessions.begin() as session:
        gallery.claim(session, job)
        store.release(session, job, 1)
    with sessions.begin() as session:
        gallery.claim(session, job)

    assert "released worker-1:41" in shown(browser, f"/page/jobs/{job}").text


def test_jobs_are_compared_side_by_side(browser: TestClient, gallery: Gallery) -> None:
    jobs = gallery.hang()
    path = "/page/compare?" + "&".join(f"job={jobs[name]}" for name in ("trained", "plain", "sweep", "queued"))
    page = shown(browser, path)

    heads = [attributes for attributes in page.of_tag("th") if attributes.get("scope") == "col"]
    assert len([head for head in heads if head.get("class") == "number"]) == 6, "two results, and four of the sweep"
    assert len([cell for cell in page.of_tag("td") if cell.get("class") == "number best"]) == 4
    assert "has no result to compare" in page.text
    assert "distillation.tokens 65536" in page.text


def test_one_job_is_not_compared(browser: TestClient, gallery: Gallery) -> None:
    assert "Choose two to eight jobs" in shown(browser, f"/page/compare?job={gallery.hang()['plain']}").text


def test_what_is_typed_by_strangers_is_text(browser: TestClient, gallery: Gallery) -> None:
    hostile = '"><img src=x onerror=alert(1)><script>alert(1)</script>'
    names = {
        "model": f"local:{hostile}",
        "metadata": {hostile: hostile},
        "evaluation": {"datasets": [f"local:{hostile}"]},
    }
    job = gallery.post("default", 10, target_ratio=2, **names)
    other = gallery.post("default", 10, target_ratio=3, **names)
    for path in ("/page", f"/page/jobs/{job}", f"/page/compare?job={job}&job={other}", f"/page/new?like={job}"):
        page = shown(browser, path)

        assert "onerror=alert(1)>" in page.text or hostile in page.values("value")
        assert all(script.get("src", "").startswith("/page/static/") for script in page.of_tag("script"))
        assert all(image["src"].startswith("/page/") for image in page.of_tag("img"))
        assert page.values("onerror") == []


def test_a_job_is_cancelled_retried_and_deleted(browser: TestClient, gallery: Gallery) -> None:
    job = gallery.post("default", 10, target_ratio=2)

    assert "cancelled" in browser.post(f"/page/jobs/{job}/cancel").text
    again = browser.post(f"/page/jobs/{job}/retry")
    assert again.url.path != f"/page/jobs/{job}"
    assert job in Page.of(again.text).text, "it says whose work it goes on with"
    assert browser.post(f"/page/jobs/{job}/delete").url.path == "/page"
    assert browser.get(f"/page/jobs/{job}").status_code == 404
