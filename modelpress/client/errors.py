"""Errors between the client and the service. Each message can be shown to a person as it is."""

from modelpress.contract.job import Problem


class ClientError(Exception):
    """Base of all errors of the client."""


class ServiceUnreachable(ClientError):
    """No connection, or no answer in time, after all retries."""


class UnexpectedAnswer(ClientError):
    """An answer that does not follow the service's contract: from another server, a proxy or another version."""


class DigestMismatch(ClientError):
    """A downloaded file that differs from the one that the service packaged."""


class ProblemError(ClientError):
    """The service refused the request; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(describe(problem))
        self.problem = problem

    @property
    def status(self) -> int:
        """Return the HTTP status code of the refusal."""
        return self.problem.status


def describe(problem: Problem) -> str:
    """Return a problem as text: its title, its detail, and a line for each wrong field.

    The detail is left out if it only repeats a field's message.
    """
    fields = [error for error in problem.errors or () if error.get("message")]
    lines = [f"{error.get('field', 'body')}: {error['message']}" for error in fields]
    if any(problem.detail in line for line in lines):
        return "\n".join([problem.title, *lines])
    return "\n".join([f"{problem.title}: {problem.detail}", *lines])
