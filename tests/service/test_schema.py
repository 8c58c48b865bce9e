"""The API held to its OpenAPI document by schemathesis, as two teams that must not meet."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from app.db import Sessions
from app.keys.setup import issue_key
from app.settings import ServerSettings
from modelpress.contract.access import KeyRequest, Scope
from tests.support.server import serving

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"
UNSAYABLE = "positive_data_acceptance"
"""Which models and texts there are, and which ratios a method reaches, is not for a schema to say."""


def auth(sessions: Sessions, path: Path) -> Path:
    """Write the keys of two teams into a file as schemathesis reads it."""
    request = KeyRequest(name="test", scopes=frozenset(Scope))
    teams = [
        {
            "name": team,
            "fixedHeaders": [
                {"name": "Authorization", "value": f"Bearer {issue_key(sessions, team, request).token}"},
            ],
        }
        for team in ("search", "ads")
    ]
    path.write_text(yaml.safe_dump({"auth": teams}))
    return path


@pytest.mark.parametrize(
    ("cases", "phases"),
    [(3, "examples,fuzzing,stateful"), pytest.param(300, "examples,coverage,fuzzing,stateful", marks=pytest.mark.full)],
)
def test_the_api_does_what_its_document_says_and_keeps_teams_apart(
    settings: ServerSettings, sessions: Sessions, tiny: object, tmp_path: Path, cases: int, phases: str
) -> None:
    command = ["run", "--checks=all", f"--exclude-checks={UNSAYABLE}", f"-n{cases}", f"--phases={phases}", "--no-color"]
    with serving(settings.model_copy(update={"requests_per_minute": None}), is_open=False) as url:
        done = subprocess.run(
            [
                SCHEMATHESIS,
                *command,
                "--seed=7",
                "--request-timeout=60",
                f"--auth-wfc={auth(sessions, tmp_path / 'auth.yaml')}",
                f"{url}/openapi.json",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
