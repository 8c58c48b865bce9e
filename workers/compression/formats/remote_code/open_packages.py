"""Open packages with torch and transformers alone, and print the findings as one JSON list.

    python -I open_packages.py MEMORY PACKAGE PROBE [PACKAGE PROBE ...]

MEMORY is the number of bytes of weights to hold at a time, or `all`. A probe is a safetensors file with `ids` [N, T]
and the expected `logits` [N, T, V]; its metadata may hold `texts`, a JSON list to tokenise. This file is run, never
imported. It must not be able to import code of ours, or it would not show that the package needs none.
"""

import gc
import json
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

for ours in ("app", "modelpress", "workers"):
    sys.modules[ours] = None  # type: ignore[assignment]

# What libraries make as they are imported stays: to look through it for garbage takes a fifth of the time.
gc.disable()

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

gc.freeze()
gc.enable()

NEW_TOKENS = 4
PACKING = (".weight_scale", ".weight_shape")
"""What compressed-tensors leaves beside a matrix that it has unpacked."""


@torch.no_grad()
def facts(package: str, probe: dict[str, torch.Tensor], memory: int | None) -> dict[str, object]:
    """Return the findings of loading a package, one forward pass and a short generation.

    `probe` has `ids` [N, T] and `logits` [N, T, V]; `memory` is in bytes, None holds all weights.
    """
    options: Any = {"trust_remote_code": True, "local_files_only": True, "dtype": probe["logits"].dtype}
    if memory is not None:
        options |= {"device_map": "auto", "max_memory": {"cpu": memory}, "offload_folder": "offloaded"}
    causal: Any = AutoModelForCausalLM
    model, loading = causal.from_pretrained(package, output_loading_info=True, **options)
    model.eval()
    expected = probe["logits"]
    logits = model(probe["ids"]).logits
    generated = model.generate(
        probe["ids"][:1, :4], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    _, base_loading = AutoModel.from_pretrained(package, output_loading_info=True, **options)
    return {
        "missing": sorted(map(str, loading["missing_keys"])),
        "unexpected": sorted(map(str, loading["unexpected_keys"])),
        "mismatched": sorted(map(str, loading["mismatched_keys"])),
        "missing_in_base": sorted(map(str, base_loading["missing_keys"])),
        "difference": float((logits - expected).abs().max()),
        "scale": float(expected.abs().max()),
        "version": versions(model.config),
        "finite": bool(logits.isfinite().all()),
        "generated": generated[0, 4:].tolist(),
        "parameters": sum(number.numel() for name, number in model.named_parameters() if not name.endswith(PACKING)),
    }


def versions(config: Any) -> str:
    """Return the version of transformers, and that of compressed-tensors where it unpacked weights."""
    if getattr(config, "quantization_config", None) is None:
        return transformers.__version__
    return f"{transformers.__version__} with compressed-tensors {version('compressed-tensors')}"


def tokenised(package: str, probe: str) -> dict[str, object]:
    """Return the ids of the probe's texts by the package's tokenizer; nothing where there are none."""
    with safe_open(probe, framework="pt") as file:
        texts = json.loads((file.metadata() or {}).get("texts", "[]"))
    if not texts:
        return {}
    tokenizer: Any = AutoTokenizer.from_pretrained(package, trust_remote_code=True, local_files_only=True)
    return {
        "ids": [tokenizer(text)["input_ids"] for text in texts],
        "special_tokens": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
        "padding_side": tokenizer.padding_side,
        "chat_template": tokenizer.chat_template,
    }


def findings(package: str, probe: str, memory: int | None) -> dict[str, object]:
    """Return what is found in one package; only the end of the traceback where it does not open."""
    try:
        return facts(package, load_file(Path(probe)), memory) | {"tokenised": tokenised(package, probe)}
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # noqa: BLE001 - whatever goes wrong with one package, the others are still there
        return {"failure": traceback.format_exc()}


if __name__ == "__main__":
    held = None if sys.argv[1] == "all" else int(sys.argv[1])
    pairs = zip(sys.argv[2::2], sys.argv[3::2], strict=True)
    json.dump([findings(package, probe, held) for package, probe in pairs], sys.stdout)
