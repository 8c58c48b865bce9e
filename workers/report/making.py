"""The section of a model card that says how the model was made."""

from collections import Counter

from modelpress.contract.distillation import Distillation
from modelpress.contract.report import CompressionReport, RoundingReport
from workers.report.phrases import code, dataset_mix


def how_it_was_made(report: CompressionReport) -> str:
    """Return the section about method, calibration, steps and training."""
    recipe = report.recipe
    chosen = f" (chosen by `{recipe.method.name}`)" if recipe.method.name != report.method else ""
    facts = [
        f"Method: `{report.method}`{chosen}. The target was {report.target_ratio:g} times smaller; the result is "
        f"{report.achieved_ratio:.4g} times smaller than the original at 16 bits a number.",
        f"Calibration: {recipe.calibration.sequences} sequences of {recipe.calibration.length} tokens of "
        f"{dataset_mix(recipe.calibration)}.",
    ]
    facts += [step.summary() for step in report.steps]
    facts += map(rounding_fact, report.rounding)
    if report.removed_blocks:
        gone = ", ".join(str(removed.block) for removed in report.removed_blocks)
        facts.append(f"Blocks removed, in this order: {gone}.")
    if unreached := sum(len(block.unreached) for block in report.removed_experts):
        facts.append(f"The calibration text reached all but {unreached} of the original's experts; those went first.")
    if report.distillation is not None and recipe.distillation is not None:
        facts.append(
            f"Distillation from the original: {report.distillation.tokens:,} tokens of "
            f"{dataset_mix(recipe.distillation)}, learning rate {recipe.distillation.learning_rate:g}, trained: "
            f"{recipe.distillation.trainable}{phases_clause(len(report.distillation.phases))}; the loss is the "
            f"divergence from the original's predictions{temperature_clause(recipe.distillation)}"
            f"{loss_terms(recipe.distillation)}."
        )
    facts.append("`compression_report.json` lists what each matrix was replaced by.")
    return "## How it was made\n\n" + "\n".join(f"- {fact}" for fact in facts)


def rounding_fact(rounding: RoundingReport) -> str:
    """Return a sentence about the codes of a format's matrices and the bits of a weight on average."""
    codes = Counter(matrix.code or "16 bits" for matrix in rounding.matrices).most_common()
    weights = sum(8 * matrix.bytes / matrix.bits for matrix in rounding.matrices)
    mean = sum(8 * matrix.bytes for matrix in rounding.matrices) / weights
    listed = ", ".join(f"{count} {plural(count)} in {code(name)}" for name, count in codes)
    trained = rounding.distillation
    after = "" if trained is None else f" Their scales were then trained on {trained.tokens:,} tokens."
    return f"Weights rounded for {code(rounding.format)}, {mean:.2f} bits each on average: {listed}.{after}"


def plural(count: int) -> str:
    """Return 'matrix' or 'matrices'."""
    return "matrix" if count == 1 else "matrices"


def temperature_clause(distillation: Distillation) -> str:
    """Return the part of the sentence that names the temperature, or nothing if it is 1."""
    return f" at temperature {distillation.temperature:g}" if distillation.temperature != 1 else ""


def loss_terms(distillation: Distillation) -> str:
    """Return the part of the sentence that lists the further terms of the loss, or nothing without any."""
    weights = {
        "the cross entropy of the text": distillation.cross_entropy_weight,
        "the normalised error of the last hidden states": distillation.hidden_weight,
    }
    return "".join(f", plus {weight:g} times {name}" for name, weight in weights.items() if weight)


def phases_clause(count: int) -> str:
    """Return the part of the sentence that states the number of phases, or nothing if there is one."""
    return f"; in {count} phases, each after the compression of some of the matrices" if count > 1 else ""
