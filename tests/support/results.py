"""The result of a job that somebody else has computed."""

from app.storage import StoredFile
from modelpress.contract.job import Comparison, Metrics

METRICS = Metrics(
    parameters=1000,
    bytes=2000,
    perplexity={"builtin:python-docs-test": 20.0},
    prefill_tokens_per_second=100.0,
    decode_tokens_per_second=10.0,
    sample="Once",
)
COMPARISON = Comparison(before=METRICS, after=METRICS)
FILES = (StoredFile("config.json", 12, "ab" * 32, "application/json"),)
