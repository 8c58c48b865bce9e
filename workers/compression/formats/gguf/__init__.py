"""Write a plain model as a GGUF file, which llama.cpp, Ollama and LM Studio open.

    Gguf().write(overlay, directory)      # directory/model.gguf

Matrices in a code of ggml's are stored in it, bit for bit, and others as the original has them; norms and biases are
stored in 32 bits, as llama.cpp expects.

Promise: one tensor at a time is in memory, and the directory appears complete or not at all.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
from transformers import CONFIG_MAPPING, GenerationConfig

from modelpress.spec.dimensions import intermediate_size
from modelpress.spec.gguf import LLAMA_CPP
from workers.compression.companions import has_tokenizer, open_tokenizer
from workers.compression.formats.files import complete
from workers.compression.formats.gguf.metadata import general, of_architecture
from workers.compression.formats.gguf.opening import FILE, open_in_llama_cpp
from workers.compression.formats.gguf.tensors import FileTensor, file_tensors
from workers.compression.formats.gguf.vocabulary import NO_VOCABULARY, vocabulary
from workers.compression.formats.writer import Writer, Written
from workers.compression.overlay import Overlay

_ALIGNMENT = gguf.GGUF_DEFAULT_ALIGNMENT


class Gguf(Writer):
    """Writer of GGUF files."""

    open_fresh = staticmethod(open_in_llama_cpp)

    def write(self, overlay: Overlay, destination: Path) -> Written:
        """Write the model as `Writer.write` says.

        Raises ValueError if llama.cpp cannot hold or compute the model, NoTokenizer if it cannot hold its tokenizer.
        """
        metadata, tensors = _contents(overlay)
        with complete(destination) as directory:
            _write_file(directory / FILE, metadata, tensors)
            size = (directory / FILE).stat().st_size
        return Written(destination, sum(tensor.numbers for tensor in tensors), size)

    def overhead(self, overlay: Overlay) -> int:
        """Return the bytes of metadata and tokenizer, and of what is stored with more bits than in the original."""
        metadata, tensors = _contents(overlay)
        with TemporaryDirectory(prefix="gguf-") as folder:
            path = Path(folder) / FILE
            _begin(path, metadata, tensors).close()
            besides = path.stat().st_size
        return besides + sum(tensor.bytes + _ALIGNMENT - tensor.plain_bytes for tensor in tensors if not tensor.in_code)


def _contents(overlay: Overlay) -> tuple[dict[str, Any], list[FileTensor]]:
    """Return the metadata and the tensors of the file. Raises as `Gguf.write` says."""
    if overlay.is_factored:
        raise ValueError("llama.cpp has no factored layers; write the format 'safetensors'")
    form = LLAMA_CPP.get(overlay.architecture.model_type)
    if form is None:
        raise ValueError(f"llama.cpp does not have the architecture {overlay.architecture.model_type!r}")
    config = CONFIG_MAPPING[overlay.architecture.model_type].from_dict(overlay.config())
    source, rows = overlay.original.directory, overlay.inventory.vocab_size
    tensors = list(file_tensors(overlay, form, config))
    metadata = {
        **general(source.name, form, tensors),
        **of_architecture(config, form, intermediate_size(overlay.inventory), rows),
        **(vocabulary(open_tokenizer(source), rows, _ends(source)) if has_tokenizer(source) else NO_VOCABULARY),
    }
    return metadata, tensors


def _ends(directory: Path) -> list[int]:
    """Return the tokens that end a text according to the model's generation config."""
    if not (directory / "generation_config.json").exists():
        return []
    stated = GenerationConfig.from_pretrained(directory, local_files_only=True).eos_token_id
    return [stated] if isinstance(stated, int) else list(stated or [])


def _begin(path: Path, metadata: dict[str, Any], tensors: list[FileTensor]) -> gguf.GGUFWriter:
    """Write what stands before the tensors of a file."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.int8), tensor.bytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return writer


def _write_file(path: Path, metadata: dict[str, Any], tensors: list[FileTensor]) -> None:
    """Write a GGUF file tensor by tensor."""
    writer = _begin(path, metadata, tensors)
    for tensor in tensors:
        writer.write_tensor_data(tensor.read())
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add an entry of the metadata in the type that llama.cpp expects of its kind."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
