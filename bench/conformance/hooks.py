"""What runs inside schemathesis: real ids in place of invented ones, a check on other teams, and counts.

schemathesis knows no id that a service has given, and no model that it can open. So a part of its valid cases gets
those of the team that asks, and of others, whose answers then have to be as if there was no such thing.
"""

import atexit
import json
import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import schemathesis

from bench.conformance.teams import Cast

CAST = Cast.model_validate_json(Path(os.environ["CONFORMANCE_CAST"]).read_text(encoding="utf-8"))
COUNTS = Path(os.environ["CONFORMANCE_COUNTS"])
OTHERS = [team for name, team in CAST.teams.items() if name != CAST.asking]
OURS = CAST.teams[CAST.asking]
REFUSED = frozenset({400, 401, 403, 404, 405, 413, 415, 422})
"""What the answer about another team's thing may be. 409 would tell that there is such a thing."""
RECIPES = frozenset({"submit_job", "estimate_job"})
FILE = "model.safetensors"

numbers = count()
answers: Counter[tuple[str, int]] = Counter()
phases: Counter[str] = Counter()
whose: Counter[str] = Counter(foreign=0, own=0)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Put real ids and a real model into a part of the valid cases."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    number, phase = next(numbers), case.meta.phase.name.value
    if phase == "fuzzing" and case.path_parameters:
        put_ids(case.path_parameters, number)
    if operation_of(case) in RECIPES and isinstance(case.body, dict) and (phase == "stateful" or number % 2):
        put_model(case.body, number if phase == "fuzzing" else 0)


def put_ids(parameters: dict[str, Any], number: int) -> None:
    """Replace the ids by those of our team, of another, or leave them as they are."""
    team = [OURS, *OTHERS, None][number % (2 + len(OTHERS))]
    if team is not None:
        for name in parameters:
            if name in team.ids:
                parameters[name] = team.ids[name][number // 7 % len(team.ids[name])]
            elif name == "name":
                parameters[name] = FILE


def put_model(body: dict[str, Any], number: int) -> None:
    """Name a model that exists, and texts that do, or the upload of another team."""
    body["model"] = CAST.model
    for section in ("calibration", "distillation", "evaluation", "method", "target_bytes"):
        body.pop(section, None)
    body["target_ratio"] = 1.3
    if number % 5 == 4:
        body["calibration"] = {"datasets": OTHERS[number % len(OTHERS)].ids["upload_id"]}


@schemathesis.hook
def after_call(context: Any, case: Any, response: Any) -> None:
    """Count the answer."""
    answers[case.operation.label, response.status_code] += 1
    if case.meta is not None:
        phases[case.meta.phase.name.value] += 1
    if named_by(case):
        whose["foreign"] += 1
    elif names_ours(case) and response.status_code < 400:
        whose["own"] += 1


@schemathesis.check
def others_are_out_of_reach(context: Any, response: Any, case: Any) -> None:
    """Fail where a thing of another team was found, changed or shown."""
    found = named_by(case)
    if found and response.status_code not in REFUSED:
        raise AssertionError(f"{found} is another team's, and the answer is {response.status_code}")
    for team in OTHERS:
        if team.word.encode() in response.content:
            raise AssertionError(f"the answer holds what belongs to the team {team.name!r}")


def named_by(case: Any) -> list[str]:
    """Return the ids of other teams that the request names, by its path or as a text of its recipe."""
    asked = {name: str(value) for name, value in (case.path_parameters or {}).items()}
    found = [value for team in OTHERS for name, value in asked.items() if value in team.ids.get(name, ())]
    if operation_of(case) == "submit_job" and isinstance(case.body, dict):
        section = case.body.get("calibration")
        datasets = section.get("datasets") if isinstance(section, dict) else None
        texts = datasets if isinstance(datasets, list) else []
        found += [str(text) for team in OTHERS for text in texts if text in team.ids["upload_id"]]
    return found


def names_ours(case: Any) -> bool:
    """Return whether the request's path names a thing of our team."""
    return any(str(value) in OURS.ids.get(name, ()) for name, value in (case.path_parameters or {}).items())


def operation_of(case: Any) -> str:
    """Return the name of the operation."""
    return str(case.operation.definition.raw.get("operationId", ""))


@atexit.register
def write_counts() -> None:
    """Write what was counted."""
    operations: dict[str, dict[str, int]] = {}
    for (label, status), times in sorted(answers.items()):
        operations.setdefault(label, {})[str(status)] = times
    COUNTS.write_text(json.dumps({"operations": operations, "phases": phases, **whose}), encoding="utf-8")
