"""OpenAPI says what the service does, and /docs needs no network."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient


@pytest.fixture
def operations(client: TestClient) -> dict[str, dict[str, Any]]:
    paths = client.get("/openapi.json").json()["paths"].values()
    return {operation["operationId"]: operation for path in paths for operation in path.values()}


def test_operations_have_readable_names(operations: dict[str, dict[str, Any]]) -> None:
    assert set(operations) == {
        "submit_job",
        "list_jobs",
        "get_job",
        "cancel_job",
        "list_models",
        "list_datasets",
        "estimate_job",
        "list_events",
        "stream_events",
        "retry_job",
        "delete_job",
        "list_workers",
        "drain_worker",
        "list_methods",
        "list_architectures",
        "list_artifacts",
        "download_artifact",
        "download_checkpoint",
        "get_report_schema",
        "get_sweep_report_schema",
        "create_webhook",
        "list_webhooks",
        "delete_webhook",
        "try_webhook",
        "rotate_webhook",
        "list_deliveries",
        "retry_delivery",
        "read_metrics",
        "check_liveness",
        "check_readiness",
        "begin_upload",
        "append_to_upload",
        "list_uploads",
        "get_upload",
        "delete_upload",
        "create_key",
        "list_keys",
        "revoke_key",
        "list_changes",
        "get_team",
    }


def test_every_error_is_documented_as_a_problem(operations: dict[str, dict[str, Any]]) -> None:
    for operation in operations.values():
        errors = {code: answer for code, answer in operation["responses"].items() if code == "default" or code >= "400"}
        assert "default" in errors
        for answer in errors.values():
            schema = answer["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}


def test_shows_what_to_post_and_what_comes_back(client: TestClient, operations: dict[str, dict[str, Any]]) -> None:
    recipe = client.get("/openapi.json").json()["components"]["schemas"]["Recipe"]

    assert recipe["examples"][0].keys() == {"model", "target_ratio"}
    answer = operations["submit_job"]["responses"]["202"]["content"]["application/json"]
    assert answer["example"]["state"] == "running"
    assert answer["schema"] == {"$ref": "#/components/schemas/Job"}


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text

    addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(addresses) >= 2
    for address in addresses:
        assert address.startswith("/")
        assert client.get(address).status_code == 200


@pytest.mark.parametrize(
    ("value", "fits"),
    [("local:tiny", True), ("org/name@main", True), ("tiny", False), ("/etc/passwd", False), ("local:/etc", False)],
)
def test_the_schema_knows_what_a_model_is_called(client: TestClient, value: str, fits: bool) -> None:
    model = client.get("/openapi.json").json()["components"]["schemas"]["Recipe"]["properties"]["model"]

    assert bool(re.search(model["pattern"], value)) is fits


def test_the_schema_knows_that_a_ratio_is_above_one(client: TestClient) -> None:
    ratio = client.get("/openapi.json").json()["components"]["schemas"]["Recipe"]["properties"]["target_ratio"]

    one, several = (kind for kind in ratio["anyOf"] if kind != {"type": "null"})
    assert one["exclusiveMinimum"] == several["items"]["exclusiveMinimum"] == 1


def test_headers_of_requests_and_answers_are_documented(operations: dict[str, dict[str, Any]]) -> None:
    download = operations["download_artifact"]

    asked = {parameter["name"] for parameter in download["parameters"] if parameter["in"] == "header"}
    assert asked == {"Range", "If-Range", "If-None-Match"}
    assert {"ETag", "Repr-Digest", "X-Request-Id"} <= download["responses"]["200"]["headers"].keys()
    assert {"Location", "Retry-After"} <= operations["submit_job"]["responses"]["202"]["headers"].keys()
    assert list(operations["download_checkpoint"]["responses"]["200"]["content"]) == ["application/x-tar"]


@pytest.mark.parametrize(
    ("path", "code", "linked"),
    [
        ("/jobs", "202", {"get_job", "cancel_job", "delete_job", "list_artifacts", "list_events"}),
        ("/uploads", "201", {"get_upload", "append_to_upload", "delete_upload"}),
        ("/keys", "201", {"revoke_key"}),
    ],
)
def test_what_is_made_is_linked_to_what_can_be_done_with_it(
    client: TestClient, path: str, code: str, linked: set[str]
) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    links = paths[path]["post"]["responses"][code]["links"]
    assert linked <= links.keys()
    assert all("$response.body#/id" in link["parameters"].values() for link in links.values())
