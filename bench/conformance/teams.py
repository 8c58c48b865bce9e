"""Teams, and one thing of each kind that a team can have."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from pydantic import BaseModel
from sqlalchemy import text

from app.db import Sessions
from app.jobs import posting, store
from app.jobs.posting import NewJob
from app.keys.setup import issue_key
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.client import Client
from modelpress.contract.access import KeyRequest, Scope
from modelpress.contract.job import Comparison, Metrics, Source
from modelpress.contract.recipe import Recipe

OWNED = {
    "jobs": "owner = :team",
    "attempts": "job_id IN (SELECT id FROM jobs WHERE owner = :team)",
    "artifacts": "job_id IN (SELECT id FROM jobs WHERE owner = :team)",
    "job_events": "job_id IN (SELECT id FROM jobs WHERE owner = :team)",
    "job_metadata": "owner = :team",
    "idempotency_keys": "owner = :team",
    "uploads": "owner = :team",
    "api_keys": "team = :team",
    "audit": "team = :team",
    "subscriptions": "team = :team",
    "deliveries": "subscription_id IN (SELECT id FROM subscriptions WHERE team = :team)",
    "teams": "name = :team",
}
"""Every table with rows of a team, and the condition that finds them."""
FIGURES = Metrics(
    parameters=1, bytes=2, perplexity={}, prefill_tokens_per_second=None, decode_tokens_per_second=None, sample=None
)


class Team(BaseModel):
    """A team: its key, the ids of what it has, and a word that stands in all of that and nowhere else."""

    name: str
    token: str
    word: str
    ids: dict[str, list[str]]
    """Ids by the parameter of the API that takes them."""


class Cast(BaseModel):
    """The teams of a run by name, which of them asks, and the model that their jobs name."""

    model: str
    asking: str
    teams: dict[str, Team]


@dataclass(frozen=True)
class Place:
    """A running API: its address, and what lies behind it."""

    address: str
    settings: ServerSettings
    sessions: Sessions
    scratch: Path


def make_team(place: Place, name: str) -> Team:
    """Make a team with two jobs, an upload, a webhook with a delivery, and a second key."""
    word = f"only-{name}-{secrets.token_hex(6)}"
    token = issue_key(place.sessions, name, KeyRequest(name=word, scopes=frozenset(Scope))).token
    jobs = [f"job_{secrets.token_hex(12)}" for _ in range(2)]
    keep_jobs(place, name, word, jobs)
    with (
        Client(place.address, api_key=token) as client,
        httpx2.Client(base_url=place.address, headers={"Authorization": f"Bearer {token}"}) as http,
    ):
        path = place.scratch / f"{word}.txt"
        path.write_text(f"{word} " * 100, encoding="utf-8")
        upload = client.upload(path).id
        webhook = posted(http, "/webhooks", {"url": f"https://ci.example.com/{word}"})
        delivery = posted(http, f"/webhooks/{webhook}/test", None)
        key = posted(http, "/keys", {"name": word})
    ids = {
        "job_id": jobs,
        "upload_id": [upload],
        "webhook_id": [webhook],
        "delivery_id": [delivery],
        "key_id": [key],
    }
    return Team(name=name, token=token, word=word, ids=ids)


def posted(http: httpx2.Client, path: str, body: Mapping[str, Any] | None) -> str:
    """Post, and return the id of what was made."""
    answer = http.post(path, json=body)
    assert answer.is_success, answer.text
    return str(answer.json()["id"])


def keep_jobs(place: Place, team: str, word: str, jobs: list[str]) -> None:
    """Keep one job that waits and one that has succeeded, with a file."""
    recipe = Recipe.model_validate(
        {"model": "local:tiny", "target_ratio": 1.3, "metadata": {"note": word}, "device": "nobodys"}
    )
    source = Source(reference="local:tiny", model_type="llama", parameters=1)
    package = place.scratch / word
    package.mkdir()
    (package / "model.safetensors").write_text(word, encoding="utf-8")
    done = jobs[-1]
    files = open_storage(place.settings.artifacts_url).publish(done, 1, package)
    with place.sessions.begin() as session:
        for job in jobs:
            posting.submit(session, NewJob(job, recipe, source, 1, owner=team))
        store.claim(session, done, "nobody", 60.0)
        store.finish(session, done, 1, 1.3, Comparison(before=FIGURES, after=FIGURES), files)


def contents(place: Place, team: str) -> dict[str, list[str]]:
    """Return every row of a team, table by table."""
    with place.sessions() as session:
        return {
            table: sorted(
                session.scalars(
                    text(f"SELECT to_jsonb(t)::text FROM {table} t WHERE {condition}"),  # noqa: S608 - constants above
                    {"team": team},
                )
            )
            for table, condition in OWNED.items()
        }
