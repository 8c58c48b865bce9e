"""The published configuration: its exact size, and that it runs."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config

from workers.compression.accounting import Halved, Kronecker
from workers.compression.architectures import Inventory, Site, inventory
from workers.compression.models import StreamedModel
from workers.compression.presets import PresetDoesNotFit, published_size, tqcompressor
from workers.compression.sequential import compress


def gpt2_small() -> Inventory:
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (50257, 768), "wpe.weight": (1024, 768)}
    for block, norm in itertools.product(range(12), ("ln_1", "ln_2")):
        shapes |= {f"h.{block}.{norm}.weight": (768,), f"h.{block}.{norm}.bias": (768,)}
    linears = {
        "attn.c_attn": (768, 2304),
        "attn.c_proj": (768, 768),
        "mlp.c_fc": (768, 3072),
        "mlp.c_proj": (3072, 768),
    }
    for block, (name, shape) in itertools.product(range(12), linears.items()):
        shapes |= {f"h.{block}.{name}.weight": shape, f"h.{block}.{name}.bias": shape[1:]}
    shapes |= {"ln_f.weight": (768,), "ln_f.bias": (768,)}
    return inventory({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50257}, shapes)


def test_gpt2_small_has_the_published_sizes() -> None:
    model = gpt2_small()
    plan = tqcompressor(model)
    assert model.total_parameters == 124_439_808
    assert published_size(model, plan, untied_head=False) == 81_336_388
    assert published_size(model, plan, untied_head=True) == 119_933_764
    assert plan.parameters_after == 81_336_388 + 12 * (768 + 3072) + 768 + 384


def test_the_released_modules_and_shapes_are_chosen() -> None:
    structures = tqcompressor(gpt2_small()).structures
    assert structures["transformer.wte"] == Halved(2)
    assert structures["transformer.h.1.mlp.c_fc"] == Kronecker(4, (768, 4), (384, 2), True, True)
    assert structures["transformer.h.11.mlp.c_proj"] == Kronecker(4, (384, 2), (768, 4), True, True)
    assert len(structures) == 13


def test_another_architecture_is_refused() -> None:
    other = Inventory(
        "llama", 0, 8, 8, (), Site("model.embed_tokens", None, 8, 8, "embedding", False), None, 64, "model"
    )
    with pytest.raises(PresetDoesNotFit, match="not for llama"):
        tqcompressor(other)


def test_a_small_gpt2_goes_through_the_preset(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=32)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = StreamedModel.open(tmp_path)
    plan = tqcompressor(model.inventory)
    parts = list(compress(model, plan, torch.randint(60, (2, 16))))
    found = {
        name: sum(t.numel() for key, t in part.tensors.items() if key.startswith(f"{name}.") and "bias" not in key)
        for part in parts
        for name in part.structures
    }
    total = model.inventory.total_parameters - sum(
        site.out_features * site.in_features
        for site in (*model.inventory.sites, model.inventory.embedding)
        if site.name in found
    )
    assert total + sum(found.values()) == plan.parameters_after
