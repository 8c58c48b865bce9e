"""GGUF files of tiny models compute in llama.cpp what the models compute in transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from modelpress.spec.codes import CODES
from modelpress.spec.errors import VerificationFailed
from modelpress.spec.gguf import LLAMA_CPP, refuse_gguf
from modelpress.spec.methods import Leaves
from tests.support.models import MODELS, VARIANTS, initialised, save_tiny_model, token_ids
from tests.support.waiting import PATIENCE_SECONDS
from workers.compression.encoded import Encoded
from workers.compression.engines.ask import Answers, Questions, ask_all
from workers.compression.engines.llama_cpp import EngineError
from workers.compression.formats.gguf import Gguf
from workers.compression.formats.gguf.opening import FILE, divergence, open_in_llama_cpp
from workers.compression.formats.gguf.packing import TYPES, pack
from workers.compression.formats.verification import Probe
from workers.compression.models.edited import EditedModel
from workers.compression.models.streamed import StreamedModel
from workers.compression.overlay import Overlay
from workers.compression.parts import CompressedPart

pytest.importorskip("xllamacpp", reason="llama.cpp is an optional extra")

LENGTH = 24
SAME = 1e-6  # nats
ROUNDED = 0.02  # llama.cpp rounds what enters a matrix of few bits
OF_LLAMA_CPP: Mapping[str, Mapping[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma2": {"query_pre_attn_scalar": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8},
    "smollm3": {"no_rope_layer_interval": 4},
    "exaone4": {"sliding_window": None, "layer_types": ["full_attention", "full_attention"]},
}
"""Changes to tiny configs that llama.cpp cannot compute."""

REFUSED = {"cohere-normed", "falcon-alibi", "stablelm-parallel"}
"""Tiny models that llama.cpp cannot compute, whatever is changed."""

LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaled(**parameters: Any) -> dict[str, Any]:
    """Return a change of rotary positions."""
    return {"rope_parameters": {"rope_theta": 1e4, "original_max_position_embeddings": 16, **parameters}}


@dataclass(frozen=True)
class Case:
    """A tiny model, what is different in its config, and the parts that are laid over it."""

    model: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    parts: Sequence[CompressedPart] = ()


CASES: dict[str, Case] = {
    **{name: Case(name) for name in MODELS if VARIANTS.get(name, (name,))[0] in LLAMA_CPP and name not in REFUSED},
    "llama with biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with Llama 3's rotation": Case("llama", scaled(**LLAMA3)),
    "llama with linear rotation": Case("llama", scaled(rope_type="linear", factor=4.0)),
    "qwen3 with yarn": Case("qwen3", scaled(rope_type="yarn", factor=4.0)),
    "gemma3 with its windows in another order": Case(
        "gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}
    ),
    "gpt2 with a head of its own": Case("gpt2", {"tie_word_embeddings": False}),
    "llama without its first block": Case("llama", {}, [CompressedPart("removal", {}, {}, removed=(0,))]),
}


@dataclass(frozen=True)
class Written:
    """A written file, and the logits [N, T, V] of the model that it holds."""

    file: Path
    logits: Tensor


def write(case: Case, directory: Path) -> Written:
    changes = {**OF_LLAMA_CPP.get(case.model, {}), **case.changes}
    model = save_tiny_model(case.model, directory / "source", **changes)
    Gguf().write(Overlay.open(directory / "source", case.parts), directory / "written")
    edited = EditedModel(StreamedModel.open(directory / "source"))
    for part in case.parts:
        edited.apply(part)
    with torch.no_grad():
        logits = (edited.whole() if case.parts else model)(token_ids(2, LENGTH)).logits
    return Written(directory / "written" / FILE, logits)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Written]:
    return {name: write(case, tmp_path_factory.mktemp("case")) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def answers(written: dict[str, Written]) -> Any:
    questions = Questions(ids=token_ids(2, LENGTH).numpy())
    asked = [(model.file, questions) for model in written.values()]
    with ask_all(asked, timeout=PATIENCE_SECONDS) as found:
        yield dict(zip(written, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_the_same_distributions(
    name: str, written: dict[str, Written], answers: dict[str, Answers | EngineError]
) -> None:
    found = answers[name]
    assert isinstance(found, Answers), found
    assert found.logits is not None
    logits = torch.from_numpy(found.logits.copy())
    assert divergence(written[name].logits.flatten(0, 1), logits.flatten(0, 1)) < SAME
    # llama.cpp looks GELU up in a table of 16-bit numbers.
    torch.testing.assert_close(logits.log_softmax(-1), written[name].logits.log_softmax(-1), atol=5e-3, rtol=1e-3)


def encoded(code: str, rows: int, columns: int) -> Encoded:
    """Return a random matrix in a code, with every level and scale in it."""
    kind, generator = CODES[code], torch.Generator().manual_seed(5)
    assert kind.group is not None and kind.block is not None
    levels = torch.randint(len(kind.levels), (rows, columns), dtype=torch.uint8, generator=generator)
    units = 0.02 * torch.randn(rows, columns // kind.block, generator=generator).half()
    if kind.powers:
        units = units.abs().log2().round().exp2().bfloat16()
    if kind.scales is None:
        return Encoded(kind, levels, units / 16)
    least, greatest = kind.scales
    scales = torch.randint(least, greatest + 1, (rows, columns // kind.group), dtype=torch.int8, generator=generator)
    return Encoded(kind, levels, units / 256, scales)


@pytest.mark.parametrize("code", TYPES)
def test_a_packed_matrix_stands_for_exactly_the_weights_that_its_code_says(code: str) -> None:
    matrix = encoded(code, 3, 512)
    packed = pack(matrix)
    np.testing.assert_array_equal(gguf.quants.dequantize(packed, TYPES[code]), matrix.decoded().numpy())
    assert packed.nbytes == CODES[code].bytes(3, 512)


def rounded_part(overlay: Overlay, codes: Mapping[str, str]) -> CompressedPart:
    """Return a part in which the tensors named in `codes` are random matrices in codes."""
    tensors: dict[str, Tensor] = {}
    sites = {f"{site.name}.weight": site for site in (*overlay.inventory.sites, overlay.inventory.embedding)}
    for name, code in codes.items():
        tensors |= encoded(code, sites[name].out_features, sites[name].in_features).tensors(name)
    return CompressedPart("rounded", {}, tensors, encodings=codes)


ROUNDED_CASES = {
    "llama": {
        "model.embed_tokens.weight": "q8_0",
        "model.layers.0.self_attn.q_proj.weight": "iq4_nl",
        "model.layers.0.self_attn.k_proj.weight": "q6_k",
        "model.layers.0.self_attn.v_proj.weight": "iq4_xs",
        "model.layers.0.self_attn.o_proj.weight": "q5_0",
        "model.layers.0.mlp.gate_proj.weight": "q4_0",
        "model.layers.0.mlp.up_proj.weight": "q3_k",
    },
    "gpt2": {"transformer.h.0.attn.c_attn.weight": "q6_k", "transformer.h.0.mlp.c_proj.weight": "q8_0"},
    "gpt_neox": {"gpt_neox.layers.0.attention.query_key_value.weight": "iq4_xs"},
}
INNER = {"llama": {"intermediate_size": 256}, "gpt2": {"n_inner": 256}, "gpt_neox": {"intermediate_size": 256}}


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Probe]:
    """Models whose matrices are stored in codes, with the logits that the decoded weights compute.

    Beside the directory of each lies one named `decoded`, in whose file the decoded weights are stored as they are.
    """
    probes = {}
    for name, codes in ROUNDED_CASES.items():
        directory = tmp_path_factory.mktemp(name)
        save_tiny_model(name, directory / "source", hidden_size=256, **INNER[name])
        overlay = Overlay.open(directory / "source")
        overlay.add(rounded_part(overlay, codes))
        Gguf().write(overlay, directory / "gguf")
        decoded = CompressedPart("decoded", {}, {name: overlay.tensor(name) for name in codes})
        Gguf().write(Overlay.open(directory / "source", [decoded]), directory / "decoded")
        edited = EditedModel(StreamedModel.open(directory / "source"))
        edited.apply(decoded)
        with torch.no_grad():
            logits = edited.whole()(token_ids(2, LENGTH)).logits
        probes[name] = Probe(directory / "gguf", token_ids(2, LENGTH), logits, ROUNDED)
    return probes


def weights_of(file: Path) -> dict[str, Any]:
    """Return the weights of a GGUF file by name."""
    tensors = gguf.GGUFReader(file).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


@pytest.mark.parametrize("name", ROUNDED_CASES)
def test_rows_in_a_code_are_ordered_as_plain_ones(name: str, rounded: dict[str, Probe]) -> None:
    directory = rounded[name].directory
    in_codes, plain = weights_of(directory / FILE), weights_of(directory.with_name("decoded") / FILE)
    assert in_codes.keys() == plain.keys()
    for tensor, weights in plain.items():
        np.testing.assert_array_equal(in_codes[tensor], weights)


def test_llama_cpp_computes_with_the_weights_of_the_codes(rounded: dict[str, Probe]) -> None:
    for found in open_in_llama_cpp(list(rounded.values()), timeout=PATIENCE_SECONDS):
        assert found.difference < ROUNDED
        assert found.engine == "llama.cpp"
        assert found.version.startswith("xllamacpp")
        assert len(found.generated) == 4


def test_other_probabilities_than_recorded_fail(rounded: dict[str, Probe]) -> None:
    probe = rounded["gpt2"]
    with pytest.raises(VerificationFailed, match=r"diverge by .* nats, and 0.02 is allowed"):
        open_in_llama_cpp(
            [Probe(probe.directory, probe.ids, probe.logits.roll(1, -1), ROUNDED)], timeout=PATIENCE_SECONDS
        )


def test_a_damaged_file_fails(rounded: dict[str, Probe], tmp_path: Path) -> None:
    probe = rounded["gpt2"]
    content = (probe.directory / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(VerificationFailed, match=r"does not open"):
        open_in_llama_cpp([Probe(tmp_path, probe.ids, probe.logits, ROUNDED)], timeout=PATIENCE_SECONDS)


def test_the_file_says_what_is_in_it(rounded: dict[str, Probe]) -> None:
    reader = gguf.GGUFReader(rounded["llama"].directory / FILE)
    said = {name: entry.contents() for name, entry in reader.fields.items()}
    assert said["general.architecture"] == "llama"
    assert said["general.quantized_by"] == "Modelpress"
    assert said["llama.block_count"] == 2
    assert said["llama.attention.head_count_kv"] == 2
    assert said["llama.context_length"] == 64
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.attn_k.weight"] == "Q6_K"
    assert types["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matrices_keep_the_dtype_of_the_original_and_norms_have_32_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "source", dtype=dtype).to(dtype).save_pretrained(tmp_path / "source")
    Gguf().write(Overlay.open(tmp_path / "source"), tmp_path / "written")
    reader = gguf.GGUFReader(tmp_path / "written" / FILE)
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_up.weight"] == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert types["blk.0.ffn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "activation 'gelu'"),
        ("llama", scaled(rope_type="dynamic", factor=2.0), "kind 'dynamic'"),
        ("qwen2", scaled(**LLAMA3), "kind 'llama3'"),
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar = 16, but 8"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_and_leaves_nothing(
    name: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    save_tiny_model(name, tmp_path / "source", **changes)
    with pytest.raises(ValueError, match=reason):
        Gguf().write(Overlay.open(tmp_path / "source"), tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_a_window_that_llama_cpp_does_not_have_limits_the_context(tmp_path: Path) -> None:
    save_tiny_model("mistral", tmp_path / "source", sliding_window=16)
    Gguf().write(Overlay.open(tmp_path / "source"), tmp_path / "written")
    reader = gguf.GGUFReader(tmp_path / "written" / FILE)
    assert reader.fields["llama.context_length"].contents() == 16


def test_architectures_that_llama_cpp_lacks_are_refused_by_name(tmp_path: Path) -> None:
    save_tiny_model("opt", tmp_path)
    assert "'opt'" in str(refuse_gguf(Overlay.open(tmp_path).inventory, Leaves.PLAIN))


def test_factored_layers_are_refused_with_what_to_send_instead(tmp_path: Path) -> None:
    initialised("llama", hidden_size=32, num_hidden_layers=1, vocab_size=64, intermediate_size=32).save_pretrained(
        tmp_path
    )
    assert "'fusion'" in str(refuse_gguf(Overlay.open(tmp_path).inventory, Leaves.FACTORED))
