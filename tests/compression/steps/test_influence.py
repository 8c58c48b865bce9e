"""Which block can go: every score against a model of transformers from which the block was really removed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.parts import CompressedPart
from workers.compression.steps.influence import removals, score
from workers.compression.steps.variants import WHOLE, Variants

BLOCKS = 6
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
}
IDS = torch.randint(80, (5, 16), generator=torch.Generator().manual_seed(1))


def write(model_type: str, directory: Path) -> Path:
    """A model whose blocks differ in what they do: their matrices are of different sizes."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SIZES))
    for number, block in enumerate(blocks_of(model)):
        for parameter in block.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05 + 0.02 * (number * 5 % BLOCKS))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama", tmp_path_factory.mktemp("llama"))


def opened(directory: Path) -> EditedModel:
    return EditedModel(StreamedModel.open(directory))


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    (blocks,) = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return blocks


def without(directory: Path, gone: set[int]) -> PreTrainedModel:
    """The model of transformers from whose list the blocks were taken."""
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    blocks = blocks_of(model)
    for index in sorted(gone, reverse=True):
        del blocks[index]
    return model


@torch.no_grad()
def last_hidden(model: PreTrainedModel) -> Tensor:
    """Return what leaves the last block, before the final norm [N, T, H]."""
    seen: list[Tensor] = []
    blocks_of(model)[-1].register_forward_hook(
        lambda _, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    model(IDS, use_cache=False)
    return seen[0]


def turning(directory: Path, gone: set[int], block: int) -> float:
    """The macro influence of a block in a model from which others have gone, straight from its definition."""
    before, after = last_hidden(without(directory, gone)), last_hidden(without(directory, {*gone, block}))
    return float(1 - functional.cosine_similarity(before, after, dim=-1).mean())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gpt_neox"])
def test_macro_influence_is_that_of_really_leaving_the_block_out(model_type: str, tmp_path: Path) -> None:
    found = score(opened(write(model_type, tmp_path)), IDS)
    expected = [turning(tmp_path, set(), block) for block in range(BLOCKS)]
    assert list(found.values) == list(range(BLOCKS))
    assert list(found.values.values()) == pytest.approx(expected, abs=2e-6)


def test_block_influence_compares_what_enters_with_what_leaves(directory: Path) -> None:
    found = score(opened(directory), IDS, "block_influence").values
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    for block in blocks_of(model):
        block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    with torch.no_grad():
        model(IDS)
    expected = [float(1 - functional.cosine_similarity(*pair, dim=-1).mean()) for pair in seen]
    assert list(found.values()) == pytest.approx(expected, abs=2e-6)


def test_loss_after_removal_is_by_how_much_the_language_models_own_rises(directory: Path) -> None:
    found = score(opened(directory), IDS, "loss_after_removal").values
    with torch.no_grad():
        whole = float(without(directory, set())(IDS, labels=IDS).loss)
        expected = [float(without(directory, {block})(IDS, labels=IDS).loss) - whole for block in range(BLOCKS)]
    assert list(found.values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("disk", [0, 15_000, 2**30], ids=["none", "some", "all"])
def test_each_removal_is_scored_in_the_model_that_the_ones_before_have_left(disk: int, directory: Path) -> None:
    gone: set[int] = set()
    for block, scores in removals(opened(directory), IDS, 4, disk=disk):
        expected = {each: turning(directory, gone, each) for each in range(BLOCKS) if each not in gone}
        assert scores.values == pytest.approx(expected, abs=2e-6)
        assert block == min(expected, key=expected.__getitem__)
        gone.add(block)
    assert len(gone) == 4


def test_a_pass_of_few_sequences_gives_the_same_scores(directory: Path) -> None:
    whole = list(removals(opened(directory), IDS, 3))
    divided = list(removals(opened(directory), IDS, 3, memory=1))
    assert [block for block, _ in divided] == [block for block, _ in whole]
    for (_, scores), (_, expected) in zip(divided, whole, strict=True):
        assert scores.values == pytest.approx(expected.values, abs=2e-6)


def test_kept_prefixes_spare_the_blocks_before_the_removed_one(directory: Path) -> None:
    loaded: list[int] = []

    class Watched(EditedModel):
        def block(self, index: int):
            loaded.append(index)
            return super().block(index)

    variants = Variants(Watched(StreamedModel.open(directory)), IDS)
    list(variants.run(range(BLOCKS), range(BLOCKS)))
    assert loaded == list(range(BLOCKS))
    loaded.clear()
    list(variants.run([0, 1, 2, 4, 5], [0, 1, 2, 4, 5], unchanged=3))
    assert loaded == [4, 5]


def test_files_of_prefixes_stay_within_what_was_asked(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit = 60_000
    variants = Variants(opened(directory), IDS, disk=limit)
    for gone in (set(), {4}, {4, 2}):
        blocks = [index for index in range(BLOCKS) if index not in gone]
        list(variants.run(blocks, blocks, unchanged=min(gone, default=0)))
        stored = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
        assert 0 < stored <= 1.1 * limit


def test_a_part_applied_between_removals_is_seen_by_the_next_scores(directory: Path) -> None:
    model = opened(directory)
    rounds = removals(model, IDS, 2)
    block, _ = next(rounds)
    early = 0 if block else 1
    name = f"model.layers.{early}.mlp.down_proj.weight"
    changed = 3 * StreamedModel.open(directory).read([name])[name]
    model.apply(CompressedPart("fusion", {}, {name: changed}, {}, removed=(block,)))
    _, scores = next(rounds)
    expected = score(model, IDS)
    assert scores.values == pytest.approx(expected.values, abs=2e-6)


def test_a_shortlist_holds_the_blocks_of_least_block_influence(directory: Path) -> None:
    quick = score(opened(directory), IDS, "block_influence").least(2)
    scores = score(opened(directory), IDS, candidates=2)
    whole = score(opened(directory), IDS)
    assert set(scores.values) == set(quick)
    assert scores.values == pytest.approx({block: whole.values[block] for block in quick}, abs=2e-6)


def test_the_whole_stream_is_there_beside_the_variants(directory: Path) -> None:
    ((ids, leaving),) = Variants(opened(directory), IDS).run(range(BLOCKS), [2])
    assert torch.equal(ids, IDS)
    assert leaving.keys() == {WHOLE, 2}
    assert torch.allclose(leaving[WHOLE], last_hidden(without(directory, set())), atol=1e-5)


def test_a_trial_fusion_leaves_less_than_plain_removal(directory: Path) -> None:
    tried = score(opened(directory), IDS, "trial_fusion").values
    plain = score(opened(directory), IDS).values
    assert tried[0] == pytest.approx(plain[0], abs=1e-6)
    assert all(tried[block] < 0.95 * plain[block] for block in range(1, BLOCKS))


def test_a_trial_fusion_leaves_the_model_as_it_is(directory: Path) -> None:
    model = opened(directory)
    first = score(model, IDS, "trial_fusion")
    assert score(model, IDS, "trial_fusion") == first


def test_an_unknown_criterion_is_refused_by_name(directory: Path) -> None:
    with pytest.raises(ValueError, match="unknown criterion 'luck'"):
        score(opened(directory), IDS, "luck")


def test_the_last_block_cannot_be_removed(directory: Path) -> None:
    with pytest.raises(ValueError, match="at least one must remain"):
        next(removals(opened(directory), IDS, BLOCKS))
