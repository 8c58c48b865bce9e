"""The process that fetches a job's model and text: the only one that has a network and the hub's token, and no torch.

`python -m workers.fetch` reads one JSON line, a FetchRequest, from standard input and writes JSON lines to standard
output: any number of FetchProgress, then one FetchDone or ErrorReport. The exit status is 0 or 1. Standard input stays
open: its end means that the supervisor is gone, and the process ends at once. What was fetched so far is kept.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, field_serializer

from app.errors import UnknownModel
from app.lifeline import end_with_parent
from app.settings import Settings, SourceSettings
from app.sources.download import Downloads
from app.sources.hub import Hub
from app.sources.models import ModelSources, explained, read_local
from app.sources.text import TextSources
from app.sources.text_files import TextFiles
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Source
from modelpress.contract.recipe import Recipe
from modelpress.contract.upload import UPLOAD
from modelpress.errors import ModelpressError
from modelpress.spec.errors import CompressionError
from modelpress.spec.inventory import Inventory
from workers import expected
from workers.disk import storage_failure
from workers.messages import FETCH_STAGE, ErrorReport, Expected, Message

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0
MODEL_SHARE = 0.9
NETWORK_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class FetchRequest(Message):
    """The files that a job needs, and where to look. It holds the hub's token: write it to the child's pipe only."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = Field(description="as in the recipe")
    revision: str | None = Field(description="the commit that a hub model was found at when the job was posted")
    texts: tuple[str, ...] = Field(description="datasets, as in the recipe")
    text_revisions: dict[str, str] = Field(default_factory=dict, description="commits of hub datasets, where known")
    sources_dir: Path = Field(description="where what is fetched is kept")
    sources: SourceSettings
    recipe: Recipe = Field(description="tells, with the model's headers, how long the job takes")
    reserved_bytes: int = Field(0, description="what stays free on the disk")
    retry_delays: tuple[float, ...] = Field((1, 2, 4, 8, 16), description="seconds before each further try at the hub")

    @field_serializer("sources", when_used="json")
    def with_token(self, sources: SourceSettings) -> dict[str, Any]:
        """Write the token out, which pydantic would mask: the child needs it."""
        token = sources.hub_token
        return sources.model_dump(mode="json") | {"hub_token": token and token.get_secret_value()}


class FetchProgress(Message):
    event: Literal["progress"] = "progress"
    fraction: float = Field(ge=0, le=1)
    detail: str


class FetchDone(Message):
    event: Literal["done"] = "done"
    model_path: Path = Field(description="a directory with config.json and safetensors, or a .gguf file")
    texts: dict[str, Path] = Field(description="dataset -> a .txt file, or a .jsonl file with a document a line")
    text_revisions: dict[str, str] = Field(description="dataset of the hub -> the commit that was fetched")
    expected: Expected = Field(Expected(), description="how long the stages take, as the headers tell")


FetchReport = Annotated[FetchProgress | FetchDone | ErrorReport, Field(discriminator="event")]
REPORT: TypeAdapter[FetchReport] = TypeAdapter(FetchReport)


def fetch_request(settings: Settings, recipe: Recipe, source: Source) -> FetchRequest:
    """Return the request that the supervisor sends for a job."""
    return FetchRequest(
        model=recipe.model,
        revision=source.revision,
        texts=tuple(dict.fromkeys(dataset for _, dataset in recipe.texts() if not UPLOAD.fullmatch(dataset))),
        text_revisions=source.text_revisions,
        sources_dir=settings.sources_dir,
        sources=settings.sources,
        recipe=recipe,
        reserved_bytes=settings.reserved_disk_bytes,
    )


def fetch_environment() -> dict[str, str]:
    """Return the variables that the fetching process needs beyond the harmless ones: the way to the network."""
    names = (*NETWORK_VARIABLES, *map(str.lower, NETWORK_VARIABLES))
    return {name: os.environ[name] for name in names if name in os.environ}


def fetch_report(event: Mapping[str, Any]) -> FetchReport:
    """Return the report in one line of the process, as the supervisor reads it."""
    return REPORT.validate_python(event)


def fetch(request: FetchRequest, report: Callable[[FetchReport], None]) -> FetchDone:
    """Make everything that a request names lie on this disk.

    Raises:
        ModelpressError: it cannot be had; see `app.sources`.
    """
    hub = Hub(request.sources.hub_endpoint, request.sources.hub_token, TIMEOUT_SECONDS)
    reached = 0.0

    def downloads(start: float, share: float) -> Downloads:
        def progress(fraction: float, detail: str) -> None:
            nonlocal reached
            reached = min(max(reached, start + share * fraction), 1.0)
            report(FetchProgress(fraction=reached, detail=detail))

        return Downloads(hub, request.sources_dir, request.retry_delays, progress, request.reserved_bytes)

    place = fetch_model(request, ModelSources(request.sources, TIMEOUT_SECONDS), downloads(0.0, MODEL_SHARE))
    texts: dict[str, Path] = {}
    revisions: dict[str, str] = {}
    share = (1 - MODEL_SHARE) / max(len(request.texts), 1)
    for index, reference in enumerate(request.texts):
        files = TextFiles(TextSources(request.sources, TIMEOUT_SECONDS), downloads(MODEL_SHARE + index * share, share))
        texts[reference], revision = files.fetch(reference, request.text_revisions.get(reference))
        if revision is not None:
            revisions[reference] = revision
    told = expected.of_stages(request.recipe, inventory_at(place, request))
    return FetchDone(model_path=place, texts=texts, text_revisions=revisions, expected=told)


def fetch_model(request: FetchRequest, sources: ModelSources, downloads: Downloads) -> Path:
    """Download a hub model at its commit; leave a local one where it is, and check it once more."""
    if request.revision is not None and request.sources.hub_enabled:
        with explained(request.model):
            return downloads.model(request.model.partition("@")[0], request.revision)
    model = sources.resolve(request.model)
    if model.path is None:
        raise UnknownModel("model", f"'{request.model}' was not resolved to a commit; post the job again")
    return model.path


def inventory_at(place: Path, request: FetchRequest) -> Inventory | None:
    """Return what a fetched model holds, or None where that cannot be told here: the stage `inspect` says why."""
    roots = (*request.sources.model_roots, request.sources_dir)
    try:
        return read_local(request.model, place, roots).inventory
    except (CompressionError, ModelpressError, ArithmeticError, LookupError, OSError, TypeError, ValueError):
        return None


def main() -> int:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    request = FetchRequest.model_validate_json(sys.stdin.buffer.readline())
    end_with_parent(sys.stdin.fileno(), grace_seconds=0)

    def report(event: FetchReport) -> None:
        sys.stdout.write(event.model_dump_json() + "\n")
        sys.stdout.flush()

    return run(request, report)


def run(request: FetchRequest, report: Callable[[FetchReport], None]) -> int:
    """Fetch what a request names, report how it ended, and return the exit status."""
    try:
        done = fetch(request, report)
    except ModelpressError as error:
        report(ErrorReport(code=FailureCode(error.code), message=error.message, stage=FETCH_STAGE))
        return 1
    except OSError as error:
        log.exception("fetch_failed")
        report(storage_failure(error, FETCH_STAGE))
        return 1
    report(done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
