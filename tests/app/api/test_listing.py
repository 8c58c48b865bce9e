"""Filters of the list of jobs, and the index behind each."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, text

from app.jobs.listing import JobFilter, select_jobs
from modelpress.contract.job import State

FILTERS = {
    "jobs_newest_first": JobFilter(),
    "jobs_by_state": JobFilter(state=State.FAILED),
    "jobs_by_model": JobFilter(model="local:tiny"),
    "jobs_by_method": JobFilter(method="width"),
    "jobs_by_metadata": JobFilter(metadata=(("team", "search"),)),
    "jobs_by_metadata_and_model": JobFilter(model="local:tiny", metadata=(("team", "search"),)),
    "jobs_by_metadata_and_method": JobFilter(method="width", metadata=(("team", "search"),)),
}


def ids(client: TestClient, query: str) -> list[str]:
    response = client.get(f"/jobs?{query}")
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["jobs"]]


def post(client: TestClient, recipe: dict[str, Any], **fields: Any) -> str:
    response = client.post("/jobs", json=recipe | fields)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def test_the_list_is_cut_by_what_the_jobs_are(client: TestClient, tiny: dict[str, Any]) -> None:
    plain = post(client, tiny)
    narrow = post(client, tiny, method="width", metadata={"team": "search", "run": "a=b"})

    assert ids(client, "method=width") == ids(client, "metadata=team=search") == [narrow]
    assert ids(client, "metadata=team=search&metadata=run=a=b") == [narrow]
    assert ids(client, "metadata=team=search&metadata=run=other") == ids(client, "metadata=team=ads") == []
    assert ids(client, "model=local:tiny") == ids(client, "model=local:tiny&state=queued") == [narrow, plain]
    assert ids(client, "model=local:other") == []


def test_the_state_beside_metadata_is_the_one_that_the_job_has_now(client: TestClient, tiny: dict[str, Any]) -> None:
    job = post(client, tiny, metadata={"team": "search"})
    assert ids(client, "metadata=team=search&state=queued") == [job]
    client.post(f"/jobs/{job}/cancel")
    assert ids(client, "metadata=team=search&state=queued") == []
    assert ids(client, "metadata=team=search&state=cancelled") == [job]


def test_the_list_is_cut_by_time(client: TestClient, tiny: dict[str, Any]) -> None:
    job = post(client, tiny)
    before, after = ((datetime.now(UTC) + timedelta(minutes=m)).isoformat().replace("+", "%2B") for m in (-1, 1))

    assert ids(client, f"created_after={before}") == ids(client, f"created_before={after}") == [job]
    assert ids(client, f"created_after={after}") == ids(client, f"created_before={before}") == []


def test_pages_of_a_filter_show_every_job_once(client: TestClient, tiny: dict[str, Any]) -> None:
    posted = [post(client, tiny, metadata={"team": "search"}) for _ in range(3)]
    first = client.get("/jobs?metadata=team=search&limit=2").json()

    seen = [job["id"] for job in first["jobs"]] + ids(client, f"metadata=team=search&after={first['next']}")
    assert seen == posted[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "metadata=team",
        "metadata==x",
        "created_after=yesterday",
        "created_after=0.5",
        "created_before=2026-01-01",
        "model=%00",
        "method=%00",
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(client: TestClient, query: str) -> None:
    response = client.get(f"/jobs?{query}")

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith(query.partition("=")[0])


@pytest.mark.parametrize("index", FILTERS)
def test_the_first_page_of_a_filter_is_found_by_an_index(engine: Engine, index: str) -> None:
    statement = select_jobs("default", FILTERS[index], None, 20)
    written = statement.compile(engine, compile_kwargs={"literal_binds": True})
    with engine.connect() as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {written}").scalars())
    assert index in plan
    assert "Sort" not in plan
