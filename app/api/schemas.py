"""The JSON schemas of the report files in a package."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.api.documentation import Responses, refusals
from modelpress.contract.report import SCHEMA_PATH, SWEEP_SCHEMA_PATH, report_schema, sweep_report_schema

SCHEMA_TYPE = "application/schema+json"
SCHEMA: Responses = {200: {"content": {SCHEMA_TYPE: {}}, "description": "A JSON schema"}}

router = APIRouter(tags=["schemas"])


@router.get(
    SCHEMA_PATH,
    operation_id="get_report_schema",
    response_class=JSONResponse,
    responses=SCHEMA | refusals(),
)
def get_report_schema() -> JSONResponse:
    """Return the JSON schema of `compression_report.json` with this `schema_version`."""
    return JSONResponse(report_schema(), media_type=SCHEMA_TYPE)


@router.get(
    SWEEP_SCHEMA_PATH,
    operation_id="get_sweep_report_schema",
    response_class=JSONResponse,
    responses=SCHEMA | refusals(),
)
def get_sweep_report_schema() -> JSONResponse:
    """Return the JSON schema of `sweep_report.json`, the report of a job with several ratios."""
    return JSONResponse(sweep_report_schema(), media_type=SCHEMA_TYPE)
