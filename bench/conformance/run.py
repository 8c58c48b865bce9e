"""Start schemathesis as one team, beside others whose things it must neither see nor change."""

import json
import os
import re
import subprocess
import sysconfig
from pathlib import Path

from pydantic import BaseModel

from bench.conformance.teams import Cast, Place, contents, make_team

SCHEMATHESIS = Path(sysconfig.get_path("scripts")) / "schemathesis"
ASKING, PEER, ABSENT = "search", "ads", "vault"
UNSAYABLE = "positive_data_acceptance"
"""Which models and texts there are, and which ratios a method reaches, is not for a schema to say."""
FAULT = re.compile(r"^- (.+)$", re.MULTILINE)
PHASES = "examples,coverage,fuzzing,stateful"


class Counts(BaseModel):
    """Numbers of requests by answer, by phase, and by whose things they were for."""

    operations: dict[str, dict[str, int]]
    """Answers by operation and status."""
    phases: dict[str, int]
    foreign: int
    """Requests for a thing of another team."""
    own: int
    """Requests for a thing of the own team that were granted."""


class Outcome(BaseModel):
    """Result of a run of schemathesis: its counts, and the faults that it reports."""

    counts: Counts
    faults: tuple[str, ...]
    """What schemathesis reports; empty where it has found nothing."""
    output: str
    changed: dict[str, list[str]]
    """Rows of the team that never asked anything, as far as they are no longer what they were, by table."""


def hold(place: Place, examples: int, *, asking: str = ASKING, phases: str = PHASES, seed: int = 7) -> Outcome:
    """Send so many cases of each operation as one of two teams, beside a third one that sends nothing."""
    cast = Cast(
        model="local:tiny",
        asking=asking,
        teams={name: make_team(place, name) for name in (ASKING, PEER, ABSENT)},
    )
    before = contents(place, ABSENT)
    files = {name: place.scratch / name for name in ("cast.json", "counts.json", "auth.json", "schemathesis.toml")}
    files["cast.json"].write_text(cast.model_dump_json(), encoding="utf-8")
    files["auth.json"].write_text(credentials(cast), encoding="utf-8")
    files["schemathesis.toml"].write_text(
        f'[auth.wfc]\npath = "auth.json"\nuser = "{asking}"\npeers = ["{ASKING}", "{PEER}"]\n', encoding="utf-8"
    )
    environment = {
        "CONFORMANCE_CAST": str(files["cast.json"]),
        "CONFORMANCE_COUNTS": str(files["counts.json"]),
        "SCHEMATHESIS_HOOKS": "bench.conformance.hooks",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        [
            SCHEMATHESIS,
            "--config-file=schemathesis.toml",
            "run",
            "--checks=all",
            f"--exclude-checks={UNSAYABLE}",
            f"--max-examples={examples}",
            f"--phases={phases}",
            f"--seed={seed}",
            "--continue-on-failure",
            "--generation-database=none",
            "--request-timeout=60",
            "--no-color",
            f"{place.address}/openapi.json",
        ],
        cwd=place.scratch,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    after = contents(place, ABSENT)
    return Outcome(
        counts=Counts.model_validate_json(files["counts.json"].read_bytes()),
        faults=found_in(done.stdout) if done.returncode else (),
        output=done.stdout + done.stderr,
        changed={table: sorted({*before[table]} ^ {*after[table]}) for table in after if before[table] != after[table]},
    )


def found_in(output: str) -> tuple[str, ...]:
    """Return the faults that the output of a failed run names."""
    return tuple(sorted(set(FAULT.findall(output)))) or ("the run has failed",)


def credentials(cast: Cast) -> str:
    """Return the keys of the teams as schemathesis reads them."""
    entries = [
        {
            "name": team.name,
            "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {team.token}"}],
        }
        for team in cast.teams.values()
    ]
    return json.dumps({"auth": entries})
