"""Whatever is posted, the service answers, and it is never the service's fault."""

import base64
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.support.api import Finished

HEADERS = {"Content-Type": "application/json"}
FIELDS = ["model", "target_ratio", "method", "calibration", "distillation", "evaluation", "seed", "metadata"]
NASTY = [
    "\0",
    "\ud800",
    "local:\0",
    "local:../../etc",
    "a/b\n",
    "local:" + "x" * 5000,
    "hub:a/b/c/d",
    "\u202e",
    "'; --",
]

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
recipes = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=8), values, max_size=8)
quick = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(response: Any) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.headers["Content-Type"] == "application/problem+json"


@quick
@given(recipe=recipes)
def test_any_recipe_is_answered(client: TestClient, recipe: dict[str, Any]) -> None:
    check(client.post("/jobs", content=json.dumps(recipe).encode(), headers=HEADERS))


@quick
@given(field=st.sampled_from(FIELDS), value=values)
def test_any_value_in_an_otherwise_valid_recipe_is_answered(client: TestClient, field: str, value: Any) -> None:
    recipe = {"model": "local:unknown", "target_ratio": 1.5} | {field: value}
    check(client.post("/jobs", content=json.dumps(recipe).encode(), headers=HEADERS))


@quick
@given(body=st.binary(max_size=200))
def test_any_bytes_are_answered(client: TestClient, body: bytes) -> None:
    check(client.post("/jobs", content=body, headers=HEADERS))


@quick
@given(after=st.text(max_size=40), limit=st.text(max_size=8), state=st.text(max_size=8))
def test_any_query_is_answered(client: TestClient, after: str, limit: str, state: str) -> None:
    check(client.get("/jobs", params={"after": after}))
    check(client.get("/jobs", params={"limit": limit, "state": state}))


@quick
@given(moment=st.datetimes(timezones=st.timezones()) | st.datetimes(), job_id=st.text(max_size=10))
def test_any_cursor_is_answered(client: TestClient, moment: datetime, job_id: str) -> None:
    cursor = f"{moment.isoformat()} {job_id}".encode("utf-8", "surrogatepass")
    check(client.get("/jobs", params={"after": base64.urlsafe_b64encode(cursor).decode()}))


@quick
@given(value=st.binary(max_size=40).filter(lambda value: not {10, 13} & set(value)))
def test_any_header_is_answered(client: TestClient, finished: Finished, value: bytes) -> None:
    headers = {b"Range": value, b"If-Range": value, b"If-None-Match": value, b"X-Request-Id": value}
    check(client.get(f"/jobs/{finished.id}/checkpoint", headers=headers))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"model": "local:tiny", "target_ratio": NaN}', 422),
        (b'{"model": "local:tiny", "target_ratio": Infinity}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1e999}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1e308}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1' + b"0" * 400 + b"}", 422),
        (b'{"model": "local:tiny", "target_ratio": 1' + b"0" * 5000 + b"}", 400),
        (b'{"model": "local:tiny", "target_ratio": 5e-324}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "seed": 9223372036854775808}', 422),
        (b'{"model": "local:tiny\\u0000", "target_ratio": 1.3}', 422),
        (b'{"model": "local:\\ud800", "target_ratio": 1.3}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "\\ud800": 1}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "metadata": {"k": "\\u0000"}}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "metadata": {"\\u0000": "v"}}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "metadata": {"\\udfff": "v"}}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "target_ratio": 0.5}', 422),
        (b'{"model": "local:tiny", "target_ratio": 1.3, "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
        (b'{"model": ' + b'{"model": ' * 500 + b"1" + b"}" * 501, 422),
    ],
    ids=lambda part: part[:72].decode() if isinstance(part, bytes) else str(part),
)
def test_what_json_allows_and_the_service_does_not_is_refused(client: TestClient, body: bytes, status: int) -> None:
    response = client.post("/jobs", content=body, headers=HEADERS)

    check(response)
    assert response.status_code == status
    assert client.get("/jobs").json()["jobs"] == []


def test_metadata_with_a_nul_names_its_field(client: TestClient, tiny: dict[str, Any]) -> None:
    response = client.post("/jobs", json=tiny | {"metadata": {"team": "a\0b"}})

    assert response.json()["errors"] == [{"field": "metadata.team", "message": "must not contain the NUL character"}]


@pytest.mark.parametrize("metadata", ['{"team": "\\ud800"}', '{"\\udfff": "search"}'])
def test_half_of_a_surrogate_pair_is_refused(client: TestClient, tiny: dict[str, Any], metadata: str) -> None:
    body = json.dumps(tiny)[:-1] + f', "metadata": {metadata}}}'

    response = client.post("/jobs", content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith("metadata")
    assert client.get("/jobs").json()["jobs"] == []


@pytest.mark.parametrize("name", ["model.layers." + "9" * 5000 + ".x.weight"])
def test_a_model_that_no_check_foresees_is_refused(
    client: TestClient, tiny: dict[str, Any], model_root: Path, name: str
) -> None:
    tensors = load_file(model_root / "tiny" / "model.safetensors")
    save_file(tensors | {name: torch.zeros(1)}, model_root / "tiny" / "model.safetensors")

    response = client.post("/jobs", json=tiny)

    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "model")


@pytest.mark.parametrize("method", ["auto", "width", "width_low_rank", "fusion"])
def test_blocks_of_different_widths_are_no_fault_of_the_service(
    client: TestClient, tiny: dict[str, Any], model_root: Path, method: str
) -> None:
    tensors = load_file(model_root / "tiny" / "model.safetensors")
    for name in [name for name in tensors if "layers.0.mlp" in name]:
        axis = 1 if "down_proj" in name else 0
        tensors[name] = tensors[name].narrow(axis, 0, tensors[name].shape[axis] // 2).contiguous()
    save_file(tensors, model_root / "tiny" / "model.safetensors")

    assert client.post("/jobs", json=tiny | {"method": method}).status_code in (202, 422)
