"""Alert rules, dashboard and Prometheus' configuration speak of metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.api.metrics import Metrics, families
from app.api.probes import Probes
from app.db import Sessions
from app.jobs.census import Census, Queue
from app.jobs.doorbell import Doorbell
from app.settings import ServerSettings
from app.storage.registry import open_storage
from modelpress.contract.job import State
from modelpress.contract.worker import WorkerState
from workers.metrics import REGISTRY

DOCKER = Path(__file__).resolve().parent.parent / "docker"
SUFFIXES = re.compile(r"_(total|count|sum|bucket)$")
COUNTED = Census(dict.fromkeys(State, 0), {}, {"any": Queue(0, 0.0, 0)}, dict.fromkeys(WorkerState, 0), 0, {}, 0.0)


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> Iterator[str]:
    for panel in json.loads((DOCKER / "grafana/modelpress.json").read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])


@pytest.fixture
def known(settings: ServerSettings, sessions: Sessions) -> set[str]:
    """The names of the metrics of API and worker."""
    probes = Probes.of(settings, sessions.kw["bind"], open_storage(settings.artifacts_url), Doorbell(settings))
    collected = [*Metrics(sessions, probes).registry.collect(), *families(COUNTED), *REGISTRY.collect()]
    return {metric.name for metric in collected}


def test_every_metric_that_an_alert_or_a_panel_asks_for_exists(rules: list[dict[str, Any]], known: set[str]) -> None:
    asked = " ".join([*(rule["expr"] for rule in rules), *dashboard()])
    names = {SUFFIXES.sub("", name) for name in re.findall(r"modelpress_\w+", asked)}
    assert names - known == set()


def test_every_alert_is_tried(rules: list[dict[str, Any]]) -> None:
    tests = yaml.safe_load((DOCKER / "prometheus/alerts_test.yml").read_text())["tests"]
    tried = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert tried == {rule["alert"] for rule in rules}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool, of Debian's package prometheus")
def test_every_alert_fires_when_it_should(rules: list[dict[str, Any]]) -> None:
    tests = DOCKER / "prometheus/alerts_test.yml"
    outcome = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
