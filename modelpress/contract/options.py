"""What all parts of a recipe share: strictness, and the mixture of texts that some of them read."""

from itertools import accumulate, pairwise

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from modelpress.contract.fields import TEXTS, Mixture, Share


class Options(BaseModel):
    """Base of all parts of a recipe: immutable, and strict, so that no misspelt option is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Mixed(Options):
    """Text from one dataset or a mixture of several."""

    datasets: Mixture = Field(("builtin:python-docs",), description=TEXTS)
    shares: tuple[Share, ...] | None = Field(
        None,
        description="relative number of sequences from each dataset, in order; [1, 2] reads twice as much of the "
        "second; null: equal shares",
    )

    @field_validator("shares")
    @classmethod
    def check_shares(cls, shares: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        """Raise ValueError unless there is one share for each dataset."""
        datasets = info.data.get("datasets", ())
        if shares is not None and datasets and len(shares) != len(datasets):
            raise ValueError(f"{len(shares)} shares for {len(datasets)} datasets; send one for each, or leave them out")
        return shares

    def divided(self, sequences: int) -> dict[str, int]:
        """Return how many of `sequences` sequences come from each dataset, in proportion to the shares."""
        shares = self.shares or (1,) * len(self.datasets)
        ends = [sequences * end // sum(shares) for end in accumulate(shares, initial=0)]
        return {dataset: end - begin for dataset, (begin, end) in zip(self.datasets, pairwise(ends), strict=True)}
