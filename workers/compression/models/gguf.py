"""Convert a GGUF file into a checkpoint of safetensors that `StreamedModel` opens."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from modelpress.spec.architectures import architecture_of
from modelpress.spec.errors import MalformedModel, NoTokenizer
from modelpress.spec.gguf_splits import SINGLE_DIGITS
from workers.compression.models.skeleton import empty_model


def convert_gguf(
    path: Path, directory: Path, rope_scaling: Mapping[str, Any] | None = None, split: str | None = None
) -> None:
    """Dequantise a GGUF file and write its model (safetensors, bfloat16) and tokenizer into `directory`.

    The file alone is read, and nothing beside it. `rope_scaling` is what it says of that in transformers' terms, and
    `split` how its vocabulary splits text: transformers' own reader leaves out the former, and some kinds of the
    latter. The whole model passes through memory. Raises UnsupportedArchitecture, NoTokenizer, and MalformedModel where
    transformers cannot read the file.
    """
    # transformers lists the directory of the file, which those who may read the file need not be allowed.
    with TemporaryDirectory(dir=directory.parent) as alone:
        (Path(alone) / path.name).symlink_to(path.resolve())
        tokenizer, opened = _opened(Path(alone) / path.name)
    if split in SINGLE_DIGITS:
        split_digits(tokenizer)
    # A model that came from GGUF refuses to be saved, so its weights move into an ordinary one.
    settings = {name: value for name, value in opened.config.to_dict().items() if name != "quantization_config"}
    if rope_scaling is not None:
        field = "rope_parameters" if "rope_parameters" in settings else "rope_scaling"
        settings[field] = {**(settings[field] or {}), **rope_scaling}
    model = empty_model(settings, torch.bfloat16, torch.device("cpu"))
    model.load_state_dict(opened.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = opened.generation_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _opened(path: Path) -> tuple[Any, Any]:
    """Return tokenizer and model of a GGUF file. Raises UnsupportedArchitecture, NoTokenizer, MalformedModel."""
    source: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
    except MemoryError:  # of this machine, not of the file
        raise
    except Exception as error:  # a stranger's file makes transformers raise anything
        raise NoTokenizer(f"The tokenizer of the GGUF file {path.name} cannot be read: {error}") from error
    try:
        architecture_of(AutoConfig.from_pretrained(path.parent, **source).to_dict())
        opened = AutoModelForCausalLM.from_pretrained(path.parent, **source, **_dequantised(), dtype=torch.bfloat16)
    except (OSError, KeyError, NotImplementedError, RuntimeError) as error:
        raise MalformedModel(f"The GGUF file {path.name} cannot be read: {error}") from error
    return tokenizer, opened


def split_digits(tokenizer: Any) -> None:
    """Let a byte-level tokenizer split every digit from the text around it before anything else."""
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])


def _dequantised() -> dict[str, Any]:
    """Return the option that requests plain weights; releases of transformers that lack it always dequantise."""
    options = getattr(transformers, "GgufConfig", None)
    return {} if options is None else {"quantization_config": options(dequantize=True)}
