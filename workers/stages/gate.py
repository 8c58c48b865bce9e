"""The recipe's gate: bounds on the quality that the result must reach."""

from collections.abc import Iterable, Iterator

from modelpress.contract.job import Comparison
from modelpress.contract.recipe import Gate


def missed(gate: Gate | None, found: Comparison) -> str | None:
    """Return a sentence about every bound that the result misses, or None if it misses none."""
    return as_sentence(misses_of(gate, found))


def as_sentence(misses: Iterable[str]) -> str | None:
    """Join clauses about missed bounds into the message of the failed job; None if there are none."""
    clauses = "; ".join(misses)
    return f"{clauses}. The checkpoint is kept and can be downloaded." if clauses else None


def misses_of(gate: Gate | None, found: Comparison) -> Iterator[str]:
    """Yield one clause for each bound and dataset that the result misses. NaN misses every bound."""
    if gate is None:
        return
    if gate.max_perplexity_ratio is not None:
        for dataset, before in found.before.perplexity.items():
            ratio = found.after.perplexity[dataset] / before
            if not ratio <= gate.max_perplexity_ratio:
                yield (
                    f"the perplexity on {dataset} is {ratio:.4g} times the original's, "
                    f"above max_perplexity_ratio ({gate.max_perplexity_ratio:g})"
                )
    if gate.min_top1_agreement is not None:
        for dataset, agreement in found.after.top1_agreement.items():
            if not agreement >= gate.min_top1_agreement:
                yield (
                    f"the top-1 agreement on {dataset} is {agreement:.4g}, "
                    f"below min_top1_agreement ({gate.min_top1_agreement:g})"
                )
