"""The form that posts a job, and says what it would take and make while somebody types."""

import hashlib
import secrets
from collections.abc import Callable
from functools import partial
from typing import Annotated, TypeVar

from anyio import to_thread
from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, Field

from app.api.addresses import address
from app.api.deps import Lookups, known_job_id
from app.api.lookups import HubLookups
from app.errors import HubUnavailable
from app.jobs.checks import asks_hub
from app.jobs.service import JobService
from app.page.access import HOME, Reading, Submitting, refuse_foreign
from app.page.drafts import LONGEST_FIELD, LONGEST_REST, PRECISIONS, TRAINING_TOKENS, Draft, Faulty
from app.page.rendering import render
from app.sources.shelf import model_names
from modelpress.contract.estimate import Estimate
from modelpress.contract.recipe import Recipe
from modelpress.errors import Refused
from modelpress.spec.formats import FORMATS, MAIN
from modelpress.spec.methods import METHODS

router = APIRouter(prefix=HOME, include_in_schema=False, dependencies=[Depends(refuse_foreign)])

Answer = TypeVar("Answer")
Text = Annotated[str, Field(max_length=LONGEST_FIELD)]


class Sent(BaseModel):
    """The form as a browser sends it."""

    model: Text = ""
    target_ratio: Text = ""
    target_bytes: Text = ""
    method: Text = "auto"
    precision: Text = "auto"
    formats: list[Text] = []
    distillation: bool = False
    tokens: Text = ""
    more: Annotated[str, Field(max_length=LONGEST_REST)] = ""
    token: Text = ""

    @property
    def draft(self) -> Draft:
        """Return what was typed."""
        return Draft(
            model=self.model.strip(),
            target_ratio=self.target_ratio.strip(),
            target_bytes=self.target_bytes.strip(),
            method=self.method,
            precision=self.precision,
            formats=self.formats,
            distillation=self.distillation,
            tokens=self.tokens,
            more=self.more,
        )

    def key(self, recipe: Recipe) -> str:
        """Return an idempotency key: one form makes one job of a recipe, however often it is sent."""
        return f"page-{self.token}-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:32]}"


Filled = Annotated[Sent, Form()]


@router.get("/new")
def show_form(
    request: Request,
    service: Submitting,
    like: Annotated[str | None, Query(max_length=100, description="the job whose recipe to begin with")] = None,
    model: Annotated[str, Query(max_length=LONGEST_FIELD)] = "",
) -> Response:
    """Show the form, empty or with the recipe of a job."""
    draft = Draft(model=model) if like is None else Draft.of(service.get(known_job_id(like)).recipe)
    return show(request, service, draft, {}, secrets.token_hex(16))


@router.post("/estimate")
async def show_estimate(request: Request, service: Reading, lookups: Lookups, sent: Filled) -> Response:
    """Show what a job would take and make, and what is wrong with it, beside the fields."""
    draft = sent.draft
    estimate, faults = await look(service, lookups, draft) if draft.is_begun else (None, {})
    return render(request, "estimate.html", draft=draft, estimate=estimate, faults=faults)


@router.post("/jobs")
async def post_job(request: Request, service: Submitting, lookups: Lookups, sent: Filled) -> Response:
    """Post the job and show it; show the form again where something is wrong with it."""
    draft = sent.draft
    try:
        recipe = draft.recipe()
        job = await ask(lookups, recipe, partial(service.submit, recipe, sent.key(recipe)))
    except Faulty as error:
        faults = error.faults
    except Refused as error:
        faults = draft.placed((fault.field, fault.message) for fault in error.faults)
    else:
        return RedirectResponse(address(request, f"{HOME}/jobs/{job.id}"), 303)
    return await to_thread.run_sync(partial(show, request, service, draft, faults, sent.token, 422))


def show(
    request: Request, service: JobService, draft: Draft, faults: dict[str, str], token: str, status: int = 200
) -> Response:
    """Return the form with what was typed and what is wrong with it."""
    return render(
        request,
        "new.html",
        status,
        draft=draft,
        faults=faults,
        token=token,
        estimate=None,
        models=model_names(service.settings.model_roots),
        hub=service.settings.hub_enabled,
        methods=list(METHODS.values()),
        formats=[form for form in FORMATS.values() if form.name != MAIN],
        precisions=PRECISIONS,
        training_tokens=TRAINING_TOKENS,
    )


async def ask(lookups: HubLookups, recipe: Recipe, call: Callable[[], Answer]) -> Answer:
    """Return what a call returns, made in one of the few threads for the hub where the recipe needs the hub."""
    return await (lookups.run(call) if asks_hub(recipe) else to_thread.run_sync(call))


async def look(service: JobService, lookups: HubLookups, draft: Draft) -> tuple[Estimate | None, dict[str, str]]:
    """Return the estimate for a draft, if it makes a recipe of a model that can be read, and its faults by field."""
    try:
        recipe = draft.recipe()
        estimate = await ask(lookups, recipe, partial(service.estimate, recipe))
    except Faulty as error:
        return None, error.faults
    except Refused as error:
        return None, draft.placed((fault.field, fault.message) for fault in error.faults)
    except HubUnavailable as error:
        return None, {"model": error.message}
    return estimate, draft.placed((error["field"], error["message"]) for error in estimate.errors)
