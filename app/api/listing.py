"""What a list of jobs can be asked for."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field

from app.jobs.listing import JobFilter
from modelpress.contract.job import State

Plain = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
Pair = Annotated[str, Field(max_length=577, pattern=r"^[^=\x00]{1,64}=[^\x00]*$", examples=["team=search"])]


def check_moment(text: object) -> object:
    """Return the text of a time. Raises ValueError for a number, of which nobody knows whether it counts seconds."""
    if isinstance(text, str) and "T" not in text.upper():
        raise ValueError("send a date and time with its offset from UTC, such as 2026-11-21T09:30:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(check_moment)]


class JobQuery(BaseModel):
    """The parameters of `GET /jobs`."""

    after: str | None = Field(None, max_length=256, description="`next` of the page before")
    limit: int = Field(20, ge=1, le=100)
    state: State | None = Field(None, description="only jobs in this state")
    model: Plain | None = Field(None, description="only jobs with exactly this `model`")
    method: Plain | None = Field(None, description="only jobs with this method")
    metadata: list[Pair] = Field(
        [], max_length=4, description="only jobs with this pair of metadata; repeat it for several"
    )
    created_after: Moment | None = Field(None, description="only jobs posted at this time or later")
    created_before: Moment | None = Field(None, description="only jobs posted before this time")

    @property
    def filter(self) -> JobFilter:
        """Return which jobs are wanted."""
        pairs = tuple((key, value) for key, _, value in (pair.partition("=") for pair in self.metadata))
        return JobFilter(self.state, self.model, self.method, pairs, self.created_after, self.created_before)
