"""Whether the result is as good as the recipe asks."""

from collections.abc import Iterable, Iterator

from app.contract.job import Comparison
from app.contract.recipe import Gate


def missed(gate: Gate | None, found: Comparison) -> str | None:
    """What the result misses, in numbers, for people; None where it misses nothing."""
    return told(misses_of(gate, found))


def told(misses: Iterable[str]) -> str | None:
    """Clauses as what the job says of them; None where there are none."""
    found = "; ".join(misses)
    return f"{found}. The checkpoint is kept and can be downloaded." if found else None


def misses_of(gate: Gate | None, found: Comparison) -> Iterator[str]:
    """One clause for each bound and dataset that is missed. A figure that is no number misses every bound."""
    if gate is None:
        return
    if gate.max_perplexity_ratio is not None:
        for dataset, before in found.before.perplexity.items():
            ratio = found.after.perplexity[dataset] / before
            if not ratio <= gate.max_perplexity_ratio:
                yield (
                    f"the perplexity on {dataset} is {ratio:.4g} times the original's, "
                    f"above the {gate.max_perplexity_ratio:g} of max_perplexity_ratio"
                )
    if gate.min_top1_agreement is not None:
        for dataset, agreement in found.after.top1_agreement.items():
            if not agreement >= gate.min_top1_agreement:
                yield (
                    f"the top-1 agreement on {dataset} is {agreement:.4g}, "
                    f"below the {gate.min_top1_agreement:g} of min_top1_agreement"
                )
