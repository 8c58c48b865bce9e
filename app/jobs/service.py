"""What can be done with a job from outside: submit, look, cancel.

Each method commits before it returns, so an answer that a client has seen is never lost.
"""

import base64
import binascii
import logging
import math
import secrets
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from app.contract.job import (
    Attempt,
    AttemptOutcome,
    Comparison,
    Failure,
    Job,
    JobPage,
    Resumed,
    Source,
    State,
    SweepResult,
    Timestamps,
)
from app.contract.recipe import Recipe
from app.db import Sessions
from app.errors import JobEnded, JobNotFound, MethodDoesNotFit, RatioOutOfRange, Refused
from app.jobs import store
from app.jobs.doorbell import Rings
from app.jobs.models import AttemptRow, JobRow
from app.jobs.states import ENDED
from app.settings import Settings
from app.sources.models import LOCAL, ModelSources
from app.sources.text import HUB, TextSources
from app.storage import StoredFile
from workers.compression.spec import methods
from workers.compression.spec.formats import FORMATS
from workers.compression.spec.inventory import Inventory
from workers.compression.spec.methods import Leaves, method_of
from workers.compression.spec.ranges import Range

SHORTEST_WINDOW = 16
"""The least tokens of a window that a recipe may ask for."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredArtifact:
    """A file of a job's result, and the attempt under whose name it is stored."""

    file: StoredFile
    attempt: int


class JobService:
    def __init__(
        self, settings: Settings, sessions: Sessions, models: ModelSources, texts: TextSources, doorbell: Rings
    ) -> None:
        self.settings = settings
        self.sessions = sessions
        self.models = models
        self.texts = texts
        self.doorbell = doorbell

    def submit(self, recipe: Recipe) -> Job:
        """Check all that can be checked without opening a weight, keep the job, ring.

        Raises:
            Refused: the recipe is wrong; the error names the field. Nothing was kept.
            HubUnavailable: the hub could not be asked.
        """
        text_revisions = self.check_texts(recipe)
        model = self.models.resolve(recipe.model)
        recipe = fitted(recipe, model.config)
        check_lengths(recipe, model.config)
        check_ratio(recipe, model.inventory)
        check_trained(recipe)
        check_phases(recipe, model.inventory)
        check_baseline(recipe, model.inventory)
        check_formats(recipe, model.inventory)
        source = Source(
            reference=recipe.model,
            revision=model.revision,
            model_type=model.inventory.model_type,
            parameters=model.inventory.total_parameters,
            text_revisions=text_revisions,
        )
        job_id = f"job_{secrets.token_hex(12)}"
        with self.sessions.begin() as session:
            store.submit(session, job_id, recipe, source, self.settings.max_attempts)
        log.info("job_submitted", extra={"job_id": job_id})
        self.doorbell.ring(job_id)
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        with self.sessions() as session:
            row = store.get(session, job_id)
            if row is None:
                raise JobNotFound(f"no job has the id {job_id!r}")
            return as_job(row, store.attempts(session, [job_id]))

    def page(self, after: str | None, limit: int, state: State | None) -> JobPage:
        """Newest first. `after` is the `next` of the page before."""
        start = None if after is None else read_cursor(after)
        with self.sessions() as session:
            rows = store.page(session, start, limit + 1, state)
            shown = rows[:limit]
            attempts = defaultdict(list)
            for attempt in store.attempts(session, [row.id for row in shown]):
                attempts[attempt.job_id].append(attempt)
        return JobPage(
            jobs=tuple(as_job(row, attempts[row.id]) for row in shown),
            next=write_cursor(shown[-1]) if len(rows) > limit else None,
        )

    def cancel(self, job_id: str) -> Job:
        """Idempotent: cancelling a cancelled job answers as the first time.

        Raises:
            JobNotFound: there is no such job.
            JobEnded: it has succeeded or failed.
        """
        with self.sessions.begin() as session:
            state = store.cancel(session, job_id)
        job = self.get(job_id)
        if state is None and job.state in ENDED:
            raise JobEnded(f"the job has {job.state}, so there is nothing left to cancel")
        return job

    def artifacts(self, job_id: str) -> tuple[StoredArtifact, ...]:
        """The files of the result; none where there is no result, or not yet."""
        with self.sessions() as session:
            if store.get(session, job_id) is None:
                raise JobNotFound(f"no job has the id {job_id!r}")
            return tuple(
                StoredArtifact(StoredFile(row.name, row.bytes, row.sha256, row.media_type), row.attempt)
                for row in store.artifacts(session, job_id)
            )

    def check_texts(self, recipe: Recipe) -> dict[str, str]:
        """The commits of those texts that come from the hub."""
        check_overlap(recipe)
        fields: dict[str, str] = {}
        for field, dataset in recipe.texts():
            fields.setdefault(dataset, field)
        texts = [self.texts.check(dataset, field) for dataset, field in fields.items()]
        return {text.reference: text.revision for text in texts if text.revision is not None}


def asks_hub(recipe: Recipe) -> bool:
    """Return whether checking the recipe takes answers of the model hub."""
    return not recipe.model.startswith(LOCAL) or any(dataset.startswith(HUB) for _, dataset in recipe.texts())


def check_overlap(recipe: Recipe) -> None:
    """Nothing may be measured on text that the result was made from."""
    made_from = {dataset: field for field, dataset in recipe.texts() if not field.startswith("evaluation.")}
    for index, dataset in enumerate(recipe.evaluation.datasets):
        if dataset in made_from:
            field = f"evaluation.datasets.{index}"
            raise Refused(field, f"{dataset!r} is also {made_from[dataset]}; evaluate on other text")


def fitted(recipe: Recipe, config: Mapping[str, Any]) -> Recipe:
    """The recipe with each length that the client left open no longer than the positions that the model knows."""
    positions = positions_of(config)
    if positions is None or positions < SHORTEST_WINDOW:
        return recipe
    sections: dict[str, BaseModel | None] = {
        "calibration": recipe.calibration,
        "evaluation": recipe.evaluation,
        "distillation": recipe.distillation,
    }
    changed = {}
    for name, section in sections.items():
        field = "window" if name == "evaluation" else "length"
        if section is not None and field not in section.model_fields_set and getattr(section, field) > positions:
            changed[name] = section.model_copy(update={field: positions})
    return recipe.model_copy(update=changed)


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Return how many positions the model knows; None where its config does not say."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    return positions if isinstance(positions, int) else None


def check_lengths(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raise unless the windows of text fit into the positions that the model knows."""
    positions = positions_of(config)
    if positions is None:
        return
    lengths = {"calibration.length": recipe.calibration.length, "evaluation.window": recipe.evaluation.window}
    if recipe.distillation is not None:
        lengths["distillation.length"] = recipe.distillation.length
    for field, length in lengths.items():
        if length > positions:
            raise Refused(field, f"{length} tokens are more than the model's {positions} positions; send {positions}")


def check_ratio(recipe: Recipe, inventory: Inventory) -> None:
    feasible = feasible_range(recipe, inventory)
    for index, ratio in enumerate(recipe.ratios):
        if ratio not in feasible:
            lowest, highest = math.ceil(feasible.lowest * 1000) / 1000, math.floor(feasible.highest * 1000) / 1000
            raise RatioOutOfRange(
                f"target_ratio.{index}" if recipe.is_sweep else "target_ratio",
                f"{ratio:g} cannot be reached for {recipe.model} with method {recipe.method.name!r}; "
                f"send a number from {lowest:.3f} to {highest:.3f}",
            )


def check_trained(recipe: Recipe) -> None:
    """Refuse to train factors alone unless the method is sure to leave some."""
    distillation, method = recipe.distillation, method_of(recipe.method)
    if distillation is not None and distillation.trainable == "factors" and method.leaves is not Leaves.FACTORED:
        message = f"the method {method.name!r} need not leave factors; send 'all' or 'norms'"
        raise Refused("distillation.trainable", message)


def check_phases(recipe: Recipe, inventory: Inventory) -> None:
    """Refuse several phases for a method that does more than factor matrices, or more phases than blocks."""
    phases, method = 1 if recipe.distillation is None else recipe.distillation.phases, method_of(recipe.method)
    if phases > 1 and not method.phased:
        message = f"the method {method.name!r} does more than factor one matrix after another; send 1 or leave it out"
        raise Refused("distillation.phases", message)
    if phases > inventory.blocks:
        message = f"the model has {inventory.blocks} blocks; send at most {inventory.blocks}"
        raise Refused("distillation.phases", message)


def check_formats(recipe: Recipe, inventory: Inventory) -> None:
    """Each format must be able to hold what the method leaves, as far as that is known now."""
    method = method_of(recipe.method)
    for index, name in enumerate(recipe.formats):
        reason = FORMATS[name].refuses(inventory, method.leaves)
        if reason is not None:
            told = f"{name!r} is not for what the method {method.name!r} leaves of this model: {reason}"
            raise Refused(f"formats.{index}", told)


def check_baseline(recipe: Recipe, inventory: Inventory) -> None:
    if recipe.evaluation.baseline and inventory.blocks < 2:
        raise Refused("evaluation.baseline", "the model has a single block, which cannot be dropped; leave it out")


def feasible_range(recipe: Recipe, inventory: Inventory) -> Range:
    """The target ratios that the recipe's method reaches on the model."""
    try:
        return method_of(recipe.method).range(inventory, recipe.method)
    except methods.OptionDoesNotFit as error:
        raise Refused(f"method.{error.option}", str(error)) from error
    except methods.MethodDoesNotFit as error:
        raise MethodDoesNotFit("method", str(error)) from error
    except (ArithmeticError, LookupError, ValueError) as error:
        # Such as blocks of different widths, which pruned checkpoints have.
        log.exception("method_not_applicable")
        message = f"the method {recipe.method.name!r} cannot be applied to the shapes of this model; choose another one"
        raise MethodDoesNotFit("method", message) from error


def as_job(row: JobRow, attempts: Sequence[AttemptRow]) -> Job:
    here = f"/jobs/{row.id}"
    links = {"self": here}
    if row.metrics is not None:
        links |= {"artifacts": f"{here}/artifacts", "checkpoint": f"{here}/checkpoint"}
    elif row.state not in ENDED:
        links |= {"cancel": f"{here}/cancel"}
    return Job(
        id=row.id,
        state=State(row.state),
        stage=row.stage,
        progress=row.progress,
        detail=row.detail,
        seconds_left=row.seconds_left,
        attempt=row.attempt,
        attempts=tuple(as_attempt(attempt) for attempt in attempts),
        timestamps=Timestamps(
            queued=row.queued_at,
            running=row.running_at,
            cancelling=row.cancelling_at,
            succeeded=row.succeeded_at,
            failed=row.failed_at,
            cancelled=row.cancelled_at,
        ),
        recipe=Recipe.model_validate(row.recipe),
        source=Source.model_validate(row.source),
        achieved_ratio=row.achieved_ratio,
        metrics=None if row.metrics is None else Comparison.model_validate(row.metrics),
        sweep=tuple(SweepResult.model_validate(result) for result in row.sweep or ()),
        error=None if row.error is None else Failure.model_validate(row.error),
        links=links,
    )


def as_attempt(row: AttemptRow) -> Attempt:
    return Attempt(
        number=row.number,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=None if row.outcome is None else AttemptOutcome(row.outcome),
        resumed=None if row.resumed is None else Resumed.model_validate(row.resumed),
    )


def write_cursor(row: JobRow) -> str:
    return base64.urlsafe_b64encode(f"{row.created_at.isoformat()} {row.id}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        moment, job_id = base64.urlsafe_b64decode(cursor.encode()).decode().split(" ")
        created_at = datetime.fromisoformat(moment)
    except (ValueError, binascii.Error):
        raise Refused("after", "send the 'next' of an earlier page, unchanged") from None
    if created_at.tzinfo is None or "\0" in job_id:
        raise Refused("after", "send the 'next' of an earlier page, unchanged")
    return created_at, job_id
