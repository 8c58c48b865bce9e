"""The published form of `compression_report.json` and `sweep_report.json`."""

from fastapi.testclient import TestClient

from modelpress.contract.report import (
    SCHEMA_VERSION,
    SWEEP_SCHEMA_VERSION,
    CompressionReport,
    SweepReport,
    report_schema,
    sweep_report_schema,
)
from tests.support.reports import distillation_report, factored_report, fused_report


def test_the_service_publishes_the_schema_of_the_report(client: TestClient) -> None:
    answer = client.get(f"/schemas/compression-report/{SCHEMA_VERSION}")
    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json() == report_schema()
    assert answer.json()["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_the_service_publishes_the_schema_of_the_report_on_several_ratios(client: TestClient) -> None:
    answer = client.get(f"/schemas/sweep-report/{SWEEP_SCHEMA_VERSION}")
    assert answer.headers["content-type"] == "application/schema+json"
    assert answer.json() == sweep_report_schema()
    assert answer.json()["properties"].keys() == SweepReport.model_fields.keys()


def test_a_version_that_is_not_there_is_a_problem(client: TestClient) -> None:
    answer = client.get("/schemas/compression-report/0")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_field_of_the_report_itself_is_described_in_its_schema() -> None:
    assert report_schema()["properties"].keys() == CompressionReport.model_fields.keys()


def test_a_report_is_read_as_it_was_written() -> None:
    for report in (fused_report(), factored_report(distillation=distillation_report(3))):
        assert CompressionReport.model_validate_json(report.model_dump_json()) == report
