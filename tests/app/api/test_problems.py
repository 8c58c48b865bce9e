"""Every error is a problem document, and says what to send instead."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.errors import HubUnavailable
from app.main import MAX_BODY_BYTES
from modelpress.contract.job import Problem

VALID = {"model": "local:tiny", "target_ratio": 1.3}


def problem(response: Any) -> Problem:
    assert response.headers["Content-Type"] == "application/problem+json"
    document = Problem.model_validate_json(response.text)
    assert document.status == response.status_code
    return document


def refused_fields(client: TestClient, body: dict[str, Any]) -> dict[str, str]:
    document = problem(client.post("/jobs", json=body))
    assert (document.status, document.instance) == (422, "/jobs")
    return {entry["field"]: entry["message"] for entry in document.errors or []}


def test_names_every_wrong_field(client: TestClient) -> None:
    body = VALID | {"target_ratio": 0.8, "calibration": {"length": 1}, "evaluation": {"datasets": ["nowhere"]}}

    fields = refused_fields(client, body)

    assert set(fields) == {"target_ratio", "calibration.length", "evaluation.datasets.0"}
    assert "send 1.25" in fields["target_ratio"]
    assert fields["evaluation.datasets.0"].startswith("send 'builtin:NAME'")


def test_names_every_field_that_does_not_fit_the_model(client: TestClient, tiny: dict[str, Any]) -> None:
    body = tiny | {
        "target_ratio": [1.3, 900],
        "calibration": {"datasets": ["local:nowhere.txt"], "length": 512},
        "distillation": {"length": 512, "phases": 99},
    }

    assert set(refused_fields(client, body)) == {
        "calibration.datasets.0",
        "calibration.length",
        "distillation.length",
        "distillation.phases",
        "target_ratio.1",
    }


def test_a_wrong_ratio_of_a_list_is_named_by_its_place(client: TestClient) -> None:
    fields = refused_fields(client, VALID | {"target_ratio": [1.2, 0.8, 900]})
    assert set(fields) == {"target_ratio.1"}


def test_names_a_missing_field(client: TestClient) -> None:
    assert set(refused_fields(client, {"model": "local:tiny"})) == {"target_ratio"}


@pytest.mark.parametrize(
    ("body", "field", "meant"),
    [
        (VALID | {"target_ration": 2}, "target_ration", "'target_ratio'"),
        ({"model": "local:tiny", "ratio": 1.3}, "ratio", "'target_ratio'"),
        (VALID | {"calibration": {"sequence": 2}}, "calibration.sequence", "'sequences'"),
        (VALID | {"distillation": {"token": 2}}, "distillation.token", "'tokens'"),
    ],
)
def test_guesses_what_an_unknown_field_should_be(
    client: TestClient, body: dict[str, Any], field: str, meant: str
) -> None:
    assert f"did you mean {meant}?" in refused_fields(client, body)[field]


def test_lists_the_fields_when_there_is_nothing_to_guess(client: TestClient) -> None:
    assert "sequences" in refused_fields(client, VALID | {"calibration": {"xyzzy": 1}})["calibration.xyzzy"]


def test_lists_no_more_errors_than_anyone_reads(client: TestClient) -> None:
    assert len(refused_fields(client, VALID | {f"field{number}": 1 for number in range(1000)})) == 20


def test_does_not_repeat_what_was_sent(client: TestClient) -> None:
    response = client.post("/jobs", json=VALID | {"seed": "hunter2", "hub_token": "hf_secret"})

    assert "hunter2" not in response.text
    assert "hf_secret" not in response.text


def test_a_refusal_of_the_domain_names_its_field(client: TestClient, tiny: dict[str, Any]) -> None:
    document = problem(client.post("/jobs", json=tiny | {"model": "local:unknown"}))

    assert (document.status, document.type) == (422, "/problems/unknown_model")
    assert document.errors is not None
    assert document.errors[0]["field"] == "model"


def test_an_unreachable_hub_is_no_fault_of_the_client(
    client: TestClient, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(reference: str) -> None:
        raise HubUnavailable("the hub does not answer; try again later")

    monkeypatch.setattr(client.app.state.service.models, "resolve", silent)
    response = client.post("/jobs", json=tiny)

    assert problem(response).type == "/problems/hub_unavailable"
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")


@pytest.mark.parametrize("body", [b"{", b"", b"nonsense", b'{"model": }', b"\xff\xfe", b"[" * 100_000, b"9" * 5000])
def test_a_body_that_is_no_json_object_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})

    assert problem(response).status in (400, 422)


def test_malformed_json_says_where(client: TestClient) -> None:
    response = client.post("/jobs", content=b'{"model": }', headers={"Content-Type": "application/json"})

    document = problem(response)
    assert (document.status, document.type) == (400, "/problems/malformed_json")
    assert "character 10" in document.detail


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
def test_a_body_of_another_type_is_refused(client: TestClient, media_type: str | None) -> None:
    headers = {"Content-Type": media_type} if media_type else {}

    assert problem(client.post("/jobs", content=b'{"model": "local:tiny"}', headers=headers)).status == 415


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"'])
def test_json_that_is_no_object_is_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})

    assert problem(response).status == 422


def test_a_body_that_says_it_is_too_large_is_refused(client: TestClient) -> None:
    response = client.post("/jobs", json={"model": "x" * MAX_BODY_BYTES})

    assert problem(response).type == "/problems/body_too_large"


def test_a_body_that_turns_out_too_large_is_refused(client: TestClient) -> None:
    chunks = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 1))
    response = client.post("/jobs", content=chunks, headers={"Content-Type": "application/json"})

    assert "Content-Length" not in response.request.headers
    assert problem(response).type == "/problems/body_too_large"


@pytest.mark.parametrize("path", ["/nothing", "/jobs/", "/job", "/problems/unknown", "/%00", "/é"])
def test_an_unknown_address_is_not_found(client: TestClient, path: str) -> None:
    assert problem(client.get(path)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/jobs", "GET, HEAD, POST"),
        ("PUT", "/jobs/job_1", "DELETE, GET, HEAD"),
        ("GET", "/jobs/job_1/cancel", "POST"),
        ("POST", "/jobs/job_1/artifacts/config.json", "GET, HEAD"),
        ("TRACE", "/livez", "GET, HEAD"),
    ],
)
def test_a_wrong_method_names_all_right_ones(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)

    assert problem(response).status == 405
    assert response.headers["Allow"] == allowed


def test_an_unexpected_failure_tells_nothing_but_a_request_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(job_id: str, team: str) -> None:
        raise ValueError("secret inside")

    monkeypatch.setattr(client.app.state.glances, "at", broken)
    response = client.get("/jobs/job_1", headers={"X-Request-Id": "trace-7"})

    document = problem(response)
    assert (document.status, document.type) == (500, "/problems/internal_error")
    assert "trace-7" in document.detail
    assert "secret" not in response.text
    assert response.headers["X-Request-Id"] == "trace-7"
    (failure,) = [record for record in caplog.records if record.message == "request_failed"]
    assert failure.__dict__["request_id"] == "trace-7"
    assert failure.exc_info is not None


def test_an_address_that_looks_like_an_id_knows_its_own_methods_alone(client: TestClient) -> None:
    assert client.options("/jobs/estimate").headers["Allow"] == "POST"
    assert client.put("/jobs").headers["Allow"] == "GET, HEAD, POST"
