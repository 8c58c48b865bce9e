"""The form: what it posts, what it refuses beside which field, and what it estimates."""

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.page.drafts import Draft
from modelpress.contract.recipe import Recipe
from tests.support.gallery import Gallery
from tests.support.html_pages import Page


@pytest.fixture
def typed(tiny: dict[str, Any]) -> dict[str, str]:
    """The form of a job that can be posted."""
    rest = {name: tiny[name] for name in ("calibration", "evaluation")}
    return {
        "model": "local:tiny",
        "target_ratio": "1.3",
        "method": "low_rank",
        "token": "a" * 32,
        "more": json.dumps(rest),
    }


def faults(html: str) -> dict[str, str]:
    """Return the message beside each field."""
    page = Page.of(html)
    names = [name.removeprefix("fault-") for name in page.values("id") if name.startswith("fault-")]
    parts = html.split('class="fault"')[1:]
    texts = [Page.of(f"<p {part.split('</p>')[0]}</p>").text for part in parts]
    return {name: text for name, text in zip(names, texts, strict=True) if text}


def test_a_job_is_posted_and_shown(browser: TestClient, typed: dict[str, str]) -> None:
    training = {"datasets": ["local:calibration.txt"], "length": 64}
    more = json.dumps(json.loads(typed["more"]) | {"distillation": training})
    ticked = {"formats": "dense", "distillation": "true", "tokens": "65536", "more": more}
    answer = browser.post("/page/jobs", data=typed | ticked)

    assert answer.status_code == 200, faults(answer.text)
    job = browser.get(f"/jobs/{answer.url.path.rpartition('/')[2]}", headers={"Accept": "*/*"}).json()
    assert job["recipe"]["target_ratio"] == 1.3
    assert job["recipe"]["formats"] == ["safetensors", "dense"]
    assert (job["recipe"]["distillation"]["tokens"], job["recipe"]["distillation"]["length"]) == (65536, 64)
    assert job["recipe"]["calibration"]["sequences"] == 8


def test_a_form_that_is_sent_twice_makes_one_job(browser: TestClient, typed: dict[str, str]) -> None:
    sent = [browser.post("/page/jobs", data=typed).url.path for _ in range(2)]
    other = browser.post("/page/jobs", data=typed | {"target_ratio": "1.31"}).url.path

    assert sent[0] == sent[1]
    assert other != sent[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": ""}, {"model": "send 'org/name'"}),
        ({"model": "local:nowhere"}, {"model": "nowhere"}),
        ({"target_ratio": ""}, {"target_ratio": "send how many times smaller"}),
        ({"target_ratio": "much"}, {"target_ratio": "Input should be a valid number"}),
        ({"target_ratio": "0.5"}, {"target_ratio": "send 2"}),
        ({"target_ratio": "900"}, {"target_ratio": "cannot be reached"}),
        ({"target_bytes": "1GB"}, {"target_ratio": "not both"}),
        ({"method": "magic"}, {"method": "there is no such method"}),
        ({"formats": "zip"}, {"formats": "send one of"}),
        ({"distillation": "true", "tokens": "few"}, {"distillation": "valid integer"}),
        ({"more": "{"}, {"more": "not valid JSON"}),
        ({"more": "[1]"}, {"more": "send a JSON object"}),
        ({"more": "[" * 20_000}, {"more": "this is"}),
        ({"more": '{"sead": 1}'}, {"more": "sead: there is no such field; did you mean 'seed'?"}),
        ({"more": '{"metadata": {"a": "\\u0000"}}'}, {"more": "must not contain the NUL character"}),
    ],
)
def test_a_fault_stands_beside_its_field(
    browser: TestClient, typed: dict[str, str], changes: dict[str, str], expected: dict[str, str]
) -> None:
    answer = browser.post("/page/jobs", data=typed | changes)

    assert answer.status_code == 422
    found = faults(answer.text)
    assert found.keys() == expected.keys()
    assert all(text in found[name] for name, text in expected.items())
    kept = Page.of(answer.text)
    assert ("method" in expected or "formats" in expected) or next(iter(changes.values())) in kept.values(
        "value"
    ) + kept.texts


def test_an_estimate_says_what_the_job_would_take_and_make(browser: TestClient, typed: dict[str, str]) -> None:
    answer = browser.post("/page/estimate", data=typed)
    text = Page.of(answer.text).text

    assert "It would be accepted." in text
    assert "1.3× smaller" in text
    assert faults(answer.text) == {}


def test_an_estimate_names_what_would_be_refused(browser: TestClient, typed: dict[str, str]) -> None:
    answer = browser.post("/page/estimate", data=typed | {"target_ratio": "900"})

    assert "It would be refused" in Page.of(answer.text).text
    assert faults(answer.text).keys() == {"target_ratio"}
    assert Page.of(answer.text).values("hx-swap-oob") == ["true"] * 8


def test_a_form_that_is_not_filled_in_yet_is_not_faulty(browser: TestClient) -> None:
    answer = browser.post("/page/estimate", data={"model": "", "target_ratio": ""})

    assert "Name a model and a target" in Page.of(answer.text).text
    assert faults(answer.text) == {}


def test_a_hub_that_is_off_is_told_beside_the_model(browser: TestClient) -> None:
    answer = browser.post("/page/estimate", data={"model": "org/name", "target_ratio": "2"})
    assert faults(answer.text).keys() >= {"model"}


def test_the_form_takes_over_the_recipe_of_a_job(browser: TestClient, gallery: Gallery) -> None:
    page = Page.of(browser.get(f"/page/new?like={gallery.hang()['trained']}").text)

    assert {"HuggingFaceTB/SmolLM2-135M-Instruct", "3.5"} <= set(page.values("value"))
    ticked = [each["value"] for each in page.of_tag("input") if "checked" in each and each.get("value")]
    assert ticked == ["gguf", "true"]
    assert '"metadata": { "for": "edge" }' in page.text


@pytest.mark.parametrize(
    "recipe",
    [
        {"target_ratio": 2},
        {"target_ratio": [2, 3.5], "formats": ["gguf", "safetensors"], "precision": 8},
        {"target_ratio": 1.2, "method": {"name": "width", "key_value_heads": 2}, "seed": 7},
        {"target_ratio": 1.2, "distillation": {"tokens": 100_000, "learning_rate": 0.001}, "device": "gpu"},
    ],
)
def test_a_recipe_comes_through_the_form_unchanged(recipe: dict[str, Any]) -> None:
    before = Recipe.model_validate({"model": "org/name"} | recipe)
    after = Draft.of(before).recipe()

    assert after.model_copy(update={"formats": before.formats}) == before
    assert set(after.formats) == set(before.formats)
