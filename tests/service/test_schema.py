"""The API held to its OpenAPI document by schemathesis, as teams that must not meet."""

import sys
from pathlib import Path

import pytest

from app.db import Sessions
from app.settings import ServerSettings
from bench.conformance.run import ASKING, PEER, hold
from bench.conformance.teams import Place
from tests.support.server import serving


@pytest.mark.parametrize(
    ("cases", "asking", "phases"),
    [
        (3, ASKING, "examples,fuzzing,stateful"),
        *(
            pytest.param(300, team, "examples,coverage,fuzzing,stateful", marks=pytest.mark.full)
            for team in (ASKING, PEER)
        ),
    ],
)
def test_the_api_does_what_its_document_says_and_keeps_teams_apart(
    settings: ServerSettings, sessions: Sessions, tiny: object, tmp_path: Path, cases: int, asking: str, phases: str
) -> None:
    (tmp_path / "conformance").mkdir()
    unlimited = settings.model_copy(update={"requests_per_minute": None, "max_queued": 100_000})
    with serving(unlimited, is_open=False) as url:
        place = Place(url, unlimited, sessions, tmp_path / "conformance")
        outcome = hold(place, cases, asking=asking, phases=phases)
    sys.stdout.write(outcome.output)
    assert outcome.faults == (), outcome.output[-5000:]
    assert outcome.changed == {}
    assert set(outcome.counts.phases) == set(phases.split(","))
    assert not [status for answers in outcome.counts.operations.values() for status in answers if status >= "500"]
    assert outcome.counts.foreign > 0
    assert outcome.counts.own > 0
