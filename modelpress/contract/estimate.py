"""What a job would take and make, said before it is posted."""

from pydantic import Field

from modelpress.contract.catalogue import RatioRange
from modelpress.contract.job import Answer


class SizeEstimate(Answer):
    """The size of the result for one ratio, at 16 bits a number."""

    target_ratio: float
    bytes: int


class TimeEstimate(Answer):
    """How long the job would take on one class of devices, from the attempts that this installation has finished."""

    device: str
    seconds: float
    attempts: int = Field(description="finished attempts that the estimate follows from; few make it rough")


class Estimate(Answer):
    """The answer to `POST /jobs/estimate`. Nothing was enqueued."""

    accepted: bool = Field(description="whether the recipe would be accepted if it were posted now")
    errors: tuple[dict[str, str], ...] = Field((), description="`field` and `message` of what would be refused")
    range: RatioRange | None = Field(description="ratios that the method reaches on the model; null if it does not fit")
    parameters_before: int
    bytes_before: int = Field(description="at 16 bits a number")
    sizes: tuple[SizeEstimate, ...] = Field(description="one for each ratio")
    memory_bytes: int = Field(description="rough need of memory for the weights that are held at once")
    disk_bytes: int = Field(description="rough need of disk for work files and result")
    times: tuple[TimeEstimate, ...] = Field(description="one for each class of devices that has finished such jobs")
