"""Every request has an id and a line in the log that gives nothing away."""

import logging

import pytest
from fastapi.testclient import TestClient


def test_makes_an_id_for_a_request_without_one(client: TestClient) -> None:
    first, second = (client.get("/livez").headers["X-Request-Id"] for _ in range(2))

    assert len(first) == 32
    assert first != second


def test_keeps_the_id_that_a_request_brings(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "abc-1.2_3"}).headers["X-Request-Id"] == "abc-1.2_3"


@pytest.mark.parametrize("given", ["a b", "x" * 65, "<script>", "é".encode().decode("latin-1"), ""])
def test_replaces_an_id_that_does_not_belong_into_a_log(client: TestClient, given: str) -> None:
    response = client.get("/livez", headers={b"X-Request-Id": given.encode("latin-1")})

    assert len(response.headers["X-Request-Id"]) == 32


def test_errors_of_the_framework_carry_the_id(client: TestClient) -> None:
    assert client.get("/nothing", headers={"X-Request-Id": "abc"}).headers["X-Request-Id"] == "abc"


def test_logs_what_happened_and_nothing_of_what_was_sent(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    client.post("/jobs?key=secret", json={"model": "secret"}, headers={"Authorization": "secret"})

    (line,) = [record.__dict__ for record in caplog.records if record.message == "request_answered"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/jobs", 422)
    assert line["seconds"] > 0
    assert "secret" not in str([record.__dict__ for record in caplog.records if record.name.startswith("app.")])
