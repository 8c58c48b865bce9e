"""Opening block by block: what is refused, what is in memory, what may be replaced."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelpress.spec.errors import MalformedModel, UnsupportedArchitecture
from tests.support.models import save_tiny_model, token_ids
from workers.compression.models.streamed import StreamedModel


def rewrite(directory: Path, changes: dict[str, Tensor | None]) -> None:
    """Replaces, adds or (None) removes tensors of the weights."""
    path = directory / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def logits(model: StreamedModel, ids: Tensor) -> Tensor:
    hidden = model.hidden(ids)
    for index in range(model.inventory.blocks):
        with model.block(index) as block:
            hidden = model.run(block, index, hidden)
    return model.logits(hidden)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model.norm.weight": None}, "lack 1 tensors that config.json implies, such as model.norm.weight"),
        ({"model.surprise": torch.ones(1)}, "hold 1 tensors that config.json does not imply, such as model.surprise"),
        ({"model.norm.weight": torch.ones(31)}, r"shape \[31\], but config.json implies \[32\]"),
        ({"model.norm.weight": torch.ones(32, dtype=torch.int8)}, "has the dtype I8"),
    ],
)
def test_weights_that_do_not_fill_the_model_are_refused(
    changes: dict[str, Tensor | None], complaint: str, tmp_path: Path
) -> None:
    save_tiny_model("llama", tmp_path)
    rewrite(tmp_path, changes)
    with pytest.raises(MalformedModel, match=complaint):
        StreamedModel.open(tmp_path)


def test_a_repeated_tied_head_must_repeat_the_embedding(tmp_path: Path) -> None:
    save_tiny_model("llama-tied", tmp_path)
    table = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path, {"lm_head.weight": table.clone()})
    StreamedModel.open(tmp_path)
    rewrite(tmp_path, {"lm_head.weight": table + 1})
    with pytest.raises(MalformedModel, match="ties the head"):
        StreamedModel.open(tmp_path)


def test_an_unsupported_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedArchitecture, match="mamba"):
        StreamedModel.open(tmp_path)


def test_between_uses_no_block_embedding_or_head_is_in_memory(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    model = StreamedModel.open(tmp_path)
    logits(model, token_ids())
    held = {name for name, parameter in model._skeleton.named_parameters() if not parameter.is_meta}
    assert held == {"model.norm.weight"}


def test_a_block_gives_its_weights_back(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    model = StreamedModel.open(tmp_path)
    with model.block(0) as block:
        assert not any(parameter.is_meta for parameter in block.parameters())
    assert all(parameter.is_meta for parameter in block.parameters())


def test_what_was_put_into_a_block_outlives_it(tmp_path: Path) -> None:
    save_tiny_model("gpt2", tmp_path)
    replacement = nn.Linear(32, 128)
    with StreamedModel.open(tmp_path).block(0) as block:
        block.mlp.c_fc = replacement
    assert not replacement.weight.is_meta


def test_gradients_pass_through_blocks_and_head_but_not_into_weights(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    model = StreamedModel.open(tmp_path)
    hidden = model.hidden(token_ids()).requires_grad_()
    with model.block(0) as block, model.head() as head:
        head(model.run(block, 0, hidden)).sum().backward()
        assert not any(parameter.requires_grad for parameter in block.parameters())
    assert hidden.grad is not None
    assert hidden.grad.any()


def test_sequences_of_several_shapes_can_take_turns(tmp_path: Path) -> None:
    whole = save_tiny_model("gemma3_text", tmp_path)
    model = StreamedModel.open(tmp_path)
    for shape in [(2, 12), (1, 7), (3, 9), (1, 2), (2, 5), (2, 12)]:
        ids = token_ids(*shape)
        with torch.no_grad():
            torch.testing.assert_close(logits(model, ids), whole(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_changed_block_changes_nothing_in_the_files_or_the_next_copy(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    model = StreamedModel.open(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with model.block(0) as block:
        for parameter in block.parameters():
            parameter.zero_()
    with model.block(0) as block:
        assert all(parameter.any() for parameter in block.parameters())
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_another_embedding_stands_in_for_a_while(tmp_path: Path) -> None:
    save_tiny_model("llama-tied", tmp_path)
    model = StreamedModel.open(tmp_path)
    inventory = model.inventory
    table = torch.randn(inventory.vocab_size, inventory.hidden_size)
    own = model.hidden(token_ids())
    with model.with_embedding(nn.Embedding.from_pretrained(table)):
        torch.testing.assert_close(model.hidden(token_ids()), table[token_ids()])
    torch.testing.assert_close(model.hidden(token_ids()), own)


def test_the_whole_model_is_tied_as_the_original(tmp_path: Path) -> None:
    save_tiny_model("llama-tied", tmp_path)
    whole = StreamedModel.open(tmp_path).whole()
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
