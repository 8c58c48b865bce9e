"""The methods as the service lists them."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from modelpress.spec.methods import METHODS


@pytest.fixture
def listed(client: TestClient) -> dict[str, dict[str, Any]]:
    return {method["name"]: method for method in client.get("/methods").json()["methods"]}


def test_every_registered_method_is_listed_the_default_first(client: TestClient) -> None:
    names = [method["name"] for method in client.get("/methods").json()["methods"]]
    assert names == list(METHODS)
    assert names[0] == "auto"


def test_a_method_says_what_stock_engines_can_do_with_its_result(listed: dict[str, dict[str, Any]]) -> None:
    assert {name: method["leaves"] for name, method in listed.items()} == {
        name: method.leaves for name, method in METHODS.items()
    }


def test_a_method_shows_the_schema_of_its_options(listed: dict[str, dict[str, Any]]) -> None:
    options = listed["width"]["options"]["properties"]
    assert options.keys() == {"name", "key_value_heads"}
    assert "key/value heads" in options["key_value_heads"]["description"]


def test_without_a_model_no_range_is_known(listed: dict[str, dict[str, Any]]) -> None:
    assert all(method["range"] is None and method["refusal"] is None for method in listed.values())


def test_on_a_model_each_method_says_what_it_reaches_or_why_it_is_not_for_it(
    client: TestClient, tiny: dict[str, Any]
) -> None:
    answer = client.get("/methods", params={"model": tiny["model"]}).json()["methods"]
    listed = {method["name"]: method for method in answer}
    assert listed["tqcompressor"]["range"] is None
    assert "defined for gpt2" in listed["tqcompressor"]["refusal"]
    assert "no mixture of experts" in listed["experts"]["refusal"]
    for name in METHODS.keys() - {"tqcompressor", "experts"}:
        assert 1 <= listed[name]["range"]["lowest"] < listed[name]["range"]["highest"], name


def test_the_range_of_a_method_depends_on_precision_and_format(client: TestClient, tiny: dict[str, Any]) -> None:
    answer = client.get("/methods", params={"model": tiny["model"]}).json()["methods"]
    (width,) = (method["ranges"] for method in answer if method["name"] == "width")
    reached = {(each["precision"], each["format"]): (each["lowest"], each["highest"]) for each in width}
    assert reached[16, "safetensors"][1] < reached[8, "safetensors"][1]
    assert reached[8, "safetensors"][0] > 1.5, "eight bits alone make a model nearly two times smaller"
    (low_rank,) = (method["ranges"] for method in answer if method["name"] == "low_rank")
    assert {each["precision"] for each in low_rank} == {"auto", 16}, "factors are not rounded"


def test_a_ratio_within_the_range_is_accepted_and_one_beyond_it_refused(
    client: TestClient, tiny: dict[str, Any]
) -> None:
    answer = client.get("/methods", params={"model": tiny["model"]}).json()["methods"]
    (reached,) = (method["range"] for method in answer if method["name"] == "low_rank")
    inside, beyond = ({**tiny, "target_ratio": reached["highest"] * by} for by in (0.99, 1.01))
    assert client.post("/jobs", json=inside).status_code == 202
    assert client.post("/jobs", json=beyond).status_code == 422


def test_a_model_that_is_not_there_is_refused_by_its_field(client: TestClient) -> None:
    answer = client.get("/methods", params={"model": "local:nowhere"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "model"


def test_a_wrong_option_of_a_method_is_named_without_the_method(client: TestClient, tiny: dict[str, Any]) -> None:
    answer = client.post("/jobs", json={**tiny, "method": {"name": "width", "key_value_head": 2}})
    assert answer.json()["errors"] == [
        {"field": "method.key_value_head", "message": "there is no such field; did you mean 'key_value_heads'?"}
    ]
