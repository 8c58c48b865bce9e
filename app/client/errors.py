"""What can go wrong between a client and the service. Each message can be shown to a person as it is."""

from app.contract.job import Problem


class ClientError(Exception):
    """A request had no good answer."""


class ServiceUnreachable(ClientError):
    """No connection, or no answer in time, after all retries."""


class UnexpectedAnswer(ClientError):
    """What answered does not speak the service's contract: another server, a proxy, or another version."""


class DigestMismatch(ClientError):
    """A downloaded file is not the file that the service packaged."""


class ProblemError(ClientError):
    """The service said no, and why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(describe(problem))
        self.problem = problem

    @property
    def status(self) -> int:
        return self.problem.status


def describe(problem: Problem) -> str:
    """The title, the detail unless a field repeats it, and a line `field: message` for each field."""
    fields = [error for error in problem.errors or () if error.get("message")]
    lines = [f"{error.get('field', 'body')}: {error['message']}" for error in fields]
    if any(problem.detail in line for line in lines):
        return "\n".join([problem.title, *lines])
    return "\n".join([f"{problem.title}: {problem.detail}", *lines])
