"""What the page adds to the application."""

from fastapi import FastAPI

from app.page import compare, composing, job, listing, problems, sign_in, start

ROUTES = (start, listing, job, compare, composing, sign_in, problems)


def install(app: FastAPI, root_path: str) -> None:
    """Add the page to the application: its routes, and errors that browsers show as pages."""
    for module in ROUTES:
        app.include_router(module.router)
    app.add_middleware(problems.ReadableProblems, root_path=root_path)
