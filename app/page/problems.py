"""Problems for people: the pages that explain them, and every error as a page where a browser has asked."""

from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.addresses import address, path_below, take_version
from app.api.documentation import PROBLEM_TYPE
from app.api.problems import all_kinds
from app.errors import Unauthenticated
from app.page.access import HOME
from app.page.rendering import render
from modelpress.contract.codes import FailureCode
from modelpress.contract.job import Problem

router = APIRouter(include_in_schema=False)

UNAUTHENTICATED = f"/problems/{Unauthenticated.code}"
KEPT = ("retry-after", "allow", "www-authenticate", "ratelimit", "ratelimit-policy", "x-request-id")
"""Headers of a problem that its page has, too."""


@router.get("/problems")
async def list_problems(request: Request) -> Response:
    """The list of all kinds of problems and all codes of failed jobs."""
    kinds = {code: kind.title for code, kind in all_kinds().items()}
    failures = {str(code): code.kind.title for code in FailureCode}
    refusals = {code: title for code, title in kinds.items() if code not in failures}
    return render(request, "problems.html", failures=sorted(failures.items()), refusals=sorted(refusals.items()))


@router.get("/problems/{code}")
async def explain_problem(code: str, request: Request) -> Response:
    """The page that explains the `type` of a problem document, or the code of a failed job."""
    kind = all_kinds().get(code)
    failure = next((known.kind for known in FailureCode if known == code), None)
    if kind is None and failure is None:
        raise HTTPException(404, "there is no problem of this code")
    return render(request, "explanation.html", code=code, kind=kind, failure=failure)


class ReadableProblems:
    """Around the application: answers a browser with a page where the API would answer with a problem document."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or "text/html" not in Headers(scope=scope).get("accept", ""):
            await self.app(scope, receive, send)
            return
        request = Request(take_version({**scope, "root_path": self.root_path, "state": {}}))
        await self.app(scope, receive, Answer(request, receive, send).take)


class Answer:
    """An answer on its way to a browser: passed on, unless it is a problem."""

    def __init__(self, request: Request, receive: Receive, send: Send) -> None:
        self.request = request
        self.receive = receive
        self.send = send
        self.start: Message | None = None
        self.body = b""

    async def take(self, message: Message) -> None:
        """Pass a message on; hold those of a problem back until it is there as a whole."""
        if message["type"] == "http.response.start":
            if Headers(raw=message["headers"]).get("content-type") == PROBLEM_TYPE:
                self.start = message
                return
        elif self.start is not None:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                response = page_of(self.request, Problem.model_validate_json(self.body)) if self.body else Response()
                await self.conclude(response)
            return
        await self.send(message)

    async def conclude(self, response: Response) -> None:
        """Send a page in the place of the problem, with the headers of the problem that still hold."""
        assert self.start is not None  # noqa: S101 - called for a problem only
        problem = Headers(raw=self.start["headers"])
        if not self.body or "hx-request" in self.request.headers:
            await self.send(refreshing(self.start) if is_signed_out(self.request, self.body) else self.start)
            await self.send({"type": "http.response.body", "body": self.body})
            return
        response.headers.update({name: problem[name] for name in KEPT if name in problem})
        await response(self.request.scope, self.receive, self.send)


def is_signed_out(request: Request, body: bytes) -> bool:
    """Return whether the page was asked for something without a valid key."""
    return path_below(request.scope).startswith(HOME) and UNAUTHENTICATED.encode() in body


def refreshing(start: Message) -> Message:
    """Return the beginning of an answer that lets htmx load the page anew, which then leads to the form for the key."""
    start = {**start, "headers": list(start["headers"])}
    MutableHeaders(scope=start)["HX-Refresh"] = "true"
    return start


def page_of(request: Request, problem: Problem) -> Response:
    """Return a problem as a page. Where the page needs a key, lead to the form for it.

    A link on another site leads here without the cookie, which is `SameSite=Strict`. So the browser is first asked to
    come again, from a page of this service.
    """
    code = problem.type.rpartition("/")[2]
    here = path_below(request.scope)
    if request.method == "GET" and here.startswith(HOME) and code == Unauthenticated.code:
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return render(request, "again.html")
        query = f"?{request.url.query}" if request.url.query else ""
        asked = urlencode({"next": address(request, here) + query})
        return RedirectResponse(f"{address(request, HOME)}/sign-in?{asked}", 303)
    kind = all_kinds().get(code)
    return render(request, "problem.html", problem.status, problem=problem, code=code, kind=kind)
