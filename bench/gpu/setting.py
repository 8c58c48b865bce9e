"""What every step is given: the device, the sizes, a place to write, and the models and the text that it may use."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

CHECKPOINT = "smollm2"
"""Directory of the weights that were carried."""

TOKENS = "second/tokens.safetensors"
"""File of the texts in token ids, among what was carried."""


@dataclass(frozen=True)
class Shape:
    """The shape of a Llama with random weights."""

    hidden: int
    intermediate: int
    blocks: int
    heads: int
    groups: int
    vocabulary: int
    tied: bool = False

    def config(self) -> LlamaConfig:
        """Return the config of a model of this shape."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            vocab_size=self.vocabulary,
            max_position_embeddings=2048,
            tie_word_embeddings=self.tied,
            architectures=["LlamaForCausalLM"],
            bos_token_id=1,
            eos_token_id=2,
        )


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models, texts and measurements of a run.

    Attributes:
        ratio: parameters before ÷ after; the tiny models reach no small one.
        compared: the model whose compression on both devices is compared.
        small, middle, large: models of random weights; `large` has some of the blocks of one of 7 billion parameters.
        calibration: sequences and their length.
        batch: sequences of a step of training, and their length.
        steps: steps of each of the turns in which training is timed.
        matrix: rows of the square matrices whose product is timed.
        decomposed: rows of the symmetric matrices whose decomposition is timed.
        decoded: sequences side by side, prompt and new tokens.
        judged: windows of text on which models are compared.
        written: the most windows that the original writes itself.
    """

    ratio: float
    compared: Shape
    small: Shape
    middle: Shape
    large: Shape
    calibration: tuple[int, int]
    batch: tuple[int, int]
    steps: int
    matrix: int
    decomposed: tuple[int, ...]
    decoded: tuple[tuple[int, int, int], ...]
    judged: int
    written: int


REAL = Sizes(
    ratio=1.3,
    compared=Shape(256, 768, 4, 8, 4, 2048),
    small=Shape(576, 1536, 30, 9, 3, 49_152, tied=True),
    middle=Shape(2048, 5632, 22, 32, 4, 32_000),
    large=Shape(4096, 11_008, 6, 32, 32, 32_000),
    calibration=(64, 512),
    batch=(64, 512),
    steps=8,
    matrix=8192,
    decomposed=(576, 1536, 4096),
    decoded=((1, 512, 32), (64, 512, 32)),
    judged=40,
    written=256,
)
REHEARSED = Sizes(
    ratio=1.5,
    compared=Shape(16, 32, 2, 2, 1, 48),
    small=Shape(32, 64, 2, 2, 1, 48, tied=True),
    middle=Shape(16, 32, 2, 2, 1, 48),
    large=Shape(16, 32, 2, 2, 2, 48),
    calibration=(4, 16),
    batch=(4, 16),
    steps=1,
    matrix=32,
    decomposed=(8, 12),
    decoded=((1, 8, 2), (2, 8, 2)),
    judged=2,
    written=2,
)


@dataclass(frozen=True)
class Setting:
    """The device, sizes, models and text that a step works with.

    Attributes:
        device: where to compute.
        sizes: how large.
        scratch: a directory to write to.
        carried: what was carried here; None: nothing.
        out: where further files of results go.
        kept: where the checkpoint that is made of it stays for a later run; None: in `scratch`.
    """

    device: torch.device
    sizes: Sizes
    scratch: Path
    carried: Path | None = None
    out: Path | None = None
    kept: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of SmolLM2-135M lies once it is made."""
        return (self.kept or self.scratch) / CHECKPOINT

    @property
    def weights(self) -> Path | None:
        """The checkpoint of SmolLM2-135M; None: a model of random weights takes its place."""
        return self.checkpoint if self.checkpoint.exists() else None

    @cached_property
    def texts(self) -> dict[str, Tensor]:
        """Texts in the token ids of these weights, [tokens] each, by name; random tokens stand in for a missing one."""
        path = None if self.carried is None else self.carried / TOKENS
        return load_file(path) if path is not None and path.exists() else {}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that a job computes in on this device."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def small(self) -> Path:
        """The directory of SmolLM2-135M, or of a model of its shape."""
        return self.weights or self.random_model(self.sizes.small)

    def random_model(self, shape: Shape) -> Path:
        """Return the directory of a model of random weights in bfloat16, which is written once."""
        name = sha256(json.dumps(asdict(shape), sort_keys=True).encode()).hexdigest()[:12]
        directory = self.scratch / f"random-{name}"
        if not directory.exists():
            torch.manual_seed(0)
            with torch.device(self.device):
                model = LlamaForCausalLM(shape.config()).bfloat16()
            unfinished = self.scratch / f"writing-{name}"
            model.cpu().save_pretrained(unfinished)
            unfinished.replace(directory)
        return directory

    def windows(
        self, count: int, length: int, vocabulary: int, *, first: int = 0, text: str = "state-of-the-union"
    ) -> Tensor:
        """Return `count` windows [count, length] of a text from the window `first` on, or of random tokens."""
        tokens, wanted = self.texts.get(text), (first + count) * length
        if tokens is None or vocabulary <= int(tokens.max()) or len(tokens) < wanted:
            return torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(first))
        return tokens[first * length : wanted].view(count, length).long()
