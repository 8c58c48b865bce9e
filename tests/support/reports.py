"""Reports of jobs that never ran, with numbers like those of a model of 30 blocks."""

import math

from modelpress.contract.job import Comparison, Metrics
from modelpress.contract.recipe import Recipe
from modelpress.contract.report import (
    CompressionReport,
    CurvePoint,
    DistillationReport,
    Environment,
    OriginalRecord,
    RemovedBlock,
    Reproducibility,
    SiteReport,
    TextRecord,
)
from modelpress.spec.steps import Narrow, Refit, Remove

BLOCKS = 30
SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
ORIGINAL_PARAMETERS = 134_515_008
TRAINED_ON = "hub:Salesforce/wikitext/wikitext-2-raw-v1/train"
TEXTS = ("hub:Salesforce/wikitext/wikitext-2-raw-v1/test", "local:state-of-the-union.txt")


def factored_report(**changes: object) -> CompressionReport:
    """A report of `low_rank`: every matrix a pivoted factorisation, the embedding as well."""
    sites = [_table()] + [
        _factored_site(role, block, *shape) for block in range(BLOCKS) for role, shape in SHAPES.items()
    ]
    return _report("low_rank", tuple(sites), **changes)


def fused_report(**changes: object) -> CompressionReport:
    """A report of `fusion`: six blocks gone, the MLPs of the others narrower."""
    removed = (12, 17, 9, 20, 14, 22)
    sites = [
        _narrowed_site(role, block, *shape, gone=block in removed)
        for block in range(BLOCKS)
        for role, shape in SHAPES.items()
    ]
    gone = tuple(
        RemovedBlock(block=block, criterion="loss_after_removal", scores=_scores(removed[:number]))
        for number, block in enumerate(removed)
    )
    steps = (Remove(count=6, criterion="loss_after_removal"), Refit(), Narrow(intermediate_size=1400))
    fixed = {"removed_blocks": gone, "steps": steps}
    return _report("fusion", tuple(sites), **{**fixed, **changes})


def distillation_report(steps: int = 256) -> DistillationReport:
    def loss(step: int) -> float:
        return 0.35 + 1.4 * math.exp(-step / 40) + 0.12 * math.sin(7.3 * step) * math.cos(2.1 * step)

    points = tuple(CurvePoint(step=step, tokens=1024 * step, loss=loss(step)) for step in range(1, steps + 1))
    return DistillationReport(tokens=1024 * steps, restarts=0, points=points)


def metrics(parameters: int, perplexities: tuple[float, float]) -> Metrics:
    return Metrics(
        parameters=parameters,
        bytes=2 * parameters,
        perplexity=dict(zip(TEXTS, perplexities, strict=True)),
        prefill_tokens_per_second=1367.3,
        decode_tokens_per_second=31.6,
        sample="Paris, the city of light.",
    )


def _report(method: str, sites: tuple[SiteReport, ...], **changes: object) -> CompressionReport:
    recipe = Recipe.model_validate(
        {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "target_ratio": 1.3,
            "method": method,
            "calibration": {"datasets": [TRAINED_ON]},
            "distillation": {"datasets": [TRAINED_ON]},
            "evaluation": {"datasets": TEXTS},
        }
    )
    fields = {
        "job_id": "job_5f0c8a2e9b1d4c7f60a3e812",
        "recipe": recipe,
        "method": method,
        "tried": {},
        "target_ratio": 1.3,
        "achieved_ratio": 1.3001,
        "metrics": Comparison(
            before=metrics(ORIGINAL_PARAMETERS, (23.59, 24.5)), after=metrics(103_471_936, (34.02, 53.41))
        ),
        "sites": sites,
        "removed_blocks": (),
        "steps": (),
        "formats": ("safetensors",),
        "reproducibility": Reproducibility(
            original=OriginalRecord(
                reference=recipe.model,
                revision="7e27bd9f95328f0f3b08261d1252705110c806f8",
                sha256={"config.json": "0" * 64},
            ),
            texts={text: TextRecord(sha256="1" * 64) for text in TEXTS},
            versions={"python": "3.11.7", "modelpress": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
            environment=Environment(device="AVX512", dtype="bfloat16", threads=2, platform="Linux-x86_64"),
        ),
    }
    return CompressionReport.model_validate(fields | changes)


def _table() -> SiteReport:
    return SiteReport(
        name="model.embed_tokens",
        role="model.embed_tokens",
        structure={"kind": "pivoted", "rank": 496, "folded": False},
        parameters_before=49152 * 576,
        parameters_after=49152 * 496 + 496 * 80 + 576,
        relative_error=0.12,
    )


def _factored_site(role: str, block: int, out_features: int, in_features: int) -> SiteReport:
    whole = out_features * in_features
    depth = block / (BLOCKS - 1)
    kept = min(1.0, 0.62 + 0.3 * abs(depth - 0.55) + 0.07 * math.sin(block + len(role)))
    return SiteReport(
        name=f"model.layers.{block}.{role}",
        block=block,
        role=role,
        structure={"kind": "pivoted", "rank": int(kept * 300), "folded": False},
        parameters_before=whole,
        parameters_after=int(kept * whole),
        relative_error=0.08 + 0.5 * (1 - kept) + 0.02 * math.cos(3 * block + len(role)),
    )


def _narrowed_site(role: str, block: int, out_features: int, in_features: int, gone: bool) -> SiteReport:
    whole = out_features * in_features
    left = 0 if gone else whole * 1400 // 1536 if role.startswith("mlp") else whole
    error = 0.05 + 0.08 * block / BLOCKS if role == "mlp.down_proj" and not gone else None
    return SiteReport(
        name=f"model.layers.{block}.{role}",
        block=block,
        role=role,
        parameters_before=whole,
        parameters_after=left,
        relative_error=error,
    )


def _scores(gone: tuple[int, ...]) -> dict[int, float]:
    return {
        block: 0.02 + 0.25 * ((block - 16) / 16) ** 4 + 0.004 * len(gone) + 0.008 * math.cos(2.2 * block)
        for block in range(BLOCKS)
        if block not in gone
    }
