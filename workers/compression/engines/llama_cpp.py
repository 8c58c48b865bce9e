"""llama.cpp as a library: open a GGUF file, and get logits, token ids and generated tokens.

    with LlamaCpp.open(path, context=1024) as model:
        model.logits(ids)               # [T, V]
        model.tokens("Once upon a time")

llama.cpp comes in the wheel `xllamacpp`. Its Python interface is that of a server and gives no logits of a prompt, so
this calls the C interface (`llama.h`) that the same library exports. That interface passes structs by value, whose
fields change between releases: `open` compares the defaults that the library fills in with those that are expected
here, and refuses a release with another layout.

Torch-free, so that a process that opens a file starts fast. An error inside llama.cpp may end the process: run it in a
process of its own.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENGINE = "llama.cpp"
LIBRARY = "xllamacpp"
"""The package that brings llama.cpp along."""

F32, F16 = 0, 1  # numbers of ggml's types
_ERROR = 4  # level of log messages

_Pointer, _Int, _Unsigned, _Float, _Bool = (
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_uint32,
    ctypes.c_float,
    ctypes.c_bool,
)


class EngineError(Exception):
    """llama.cpp is not installed, is of an unknown release, or did not do what it was asked for."""


class _ModelParameters(ctypes.Structure):
    """`llama_model_params`, which are used with their defaults."""

    _fields_ = (("bytes", ctypes.c_ubyte * 80),)


class _ContextParameters(ctypes.Structure):
    """`llama_context_params`."""

    _fields_ = (
        *((name, _Unsigned) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, _Unsigned) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, _Int) for name in ("n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type")),
        *((name, _Int) for name in ("attention_type", "flash_attn_type")),
        *((name, _Float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor")),
        *((name, _Float) for name in ("yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", _Unsigned),
        ("defrag_thold", _Float),
        ("cb_eval", _Pointer),
        ("cb_eval_user_data", _Pointer),
        ("type_k", _Int),
        ("type_v", _Int),
        *((name, _Pointer) for name in ("abort_callback", "abort_callback_data", "unknown")),
        *((name, _Bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload", "swa_full", "kv_unified")),
        ("samplers", _Pointer),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", _Pointer),
    )


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", _Int),
        ("token", ctypes.POINTER(_Int)),
        ("embd", _Pointer),
        ("pos", _Pointer),
        ("n_seq_id", _Pointer),
        ("seq_id", _Pointer),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_outputs_max_per_seq": 1, "rope_scaling_type": -1,
    "flash_attn_type": -1, "yarn_attn_factor": -1.0, "yarn_orig_ctx": 0, "defrag_thold": -1.0, "cb_eval": None,
    "type_k": F16, "type_v": F16, "embeddings": False, "offload_kqv": True, "no_perf": True, "kv_unified": False,
    "samplers": None, "n_samplers": 0,
}  # fmt: skip
"""Fields of `llama_context_params` with the defaults by which its layout is recognised."""

_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_errors: list[str] = []


def _keep_errors(level: int, text: bytes, data: object) -> None:
    """Keep error messages in place of llama.cpp's log on stderr."""
    if level == _ERROR:
        _errors.append(text.decode("utf-8", errors="replace").strip())


_log = _LogCallback(_keep_errors)


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (_LogCallback, _Pointer)),
    "llama_model_default_params": (_ModelParameters, ()),
    "llama_context_default_params": (_ContextParameters, ()),
    "llama_model_load_from_file": (_Pointer, (ctypes.c_char_p, _ModelParameters)),
    "llama_model_free": (None, (_Pointer,)),
    "llama_init_from_model": (_Pointer, (_Pointer, _ContextParameters)),
    "llama_free": (None, (_Pointer,)),
    "llama_get_memory": (_Pointer, (_Pointer,)),
    "llama_memory_clear": (None, (_Pointer, _Bool)),
    "llama_decode": (_Int, (_Pointer, _Batch)),
    "llama_get_logits": (ctypes.POINTER(_Float), (_Pointer,)),
    "llama_model_get_vocab": (_Pointer, (_Pointer,)),
    "llama_vocab_n_tokens": (_Int, (_Pointer,)),
    "llama_vocab_is_eog": (_Bool, (_Pointer, _Int)),
    "llama_tokenize": (_Int, (_Pointer, ctypes.c_char_p, _Int, ctypes.POINTER(_Int), _Int, _Bool, _Bool)),
    "llama_detokenize": (_Int, (_Pointer, ctypes.POINTER(_Int), _Int, ctypes.c_char_p, _Int, _Bool, _Bool)),
    "llama_model_chat_template": (ctypes.c_char_p, (_Pointer, ctypes.c_char_p)),
    "llama_model_n_params": (ctypes.c_uint64, (_Pointer,)),
    "llama_model_size": (ctypes.c_uint64, (_Pointer,)),
    "ggml_quantize_chunk": (
        ctypes.c_size_t,
        (_Int, _Pointer, _Pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _Pointer),
    ),
}


def engine_version() -> str:
    """Return which release of llama.cpp is installed. Raises EngineError where there is none."""
    try:
        return f"{LIBRARY} {version(LIBRARY)}"
    except PackageNotFoundError as error:
        raise EngineError(f"the package {LIBRARY} is not installed") from error


@cache
def library() -> ctypes.CDLL:
    """Return llama.cpp's library with the signatures of its functions. Raises EngineError."""
    found = find_spec(LIBRARY)
    if found is None or found.origin is None:
        raise EngineError(f"the package {LIBRARY} is not installed")
    path = next(Path(found.origin).parent.glob(f"{LIBRARY}*.so"), None)
    if path is None:
        raise EngineError(f"the package {LIBRARY} holds no library of llama.cpp")
    loaded = ctypes.CDLL(str(path))
    try:
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise EngineError(f"llama.cpp of {engine_version()} lacks a function that is needed: {error}") from error
    defaults = loaded.llama_context_default_params()
    for field, expected in _DEFAULTS.items():
        if getattr(defaults, field) != expected:
            raise EngineError(
                f"llama.cpp of {engine_version()} has another interface than is known here (its default of {field})"
            )
    loaded.llama_backend_init()
    loaded.llama_log_set(_log, None)
    return loaded


class LlamaCpp:
    """A GGUF file that is open in llama.cpp; `open` makes one."""

    def __init__(self, model: int, context: int, positions: int, threads: int) -> None:
        self._library = library()
        self._model, self._context, self._positions = model, context, positions
        self._vocabulary = self._library.llama_model_get_vocab(model)
        self.threads = threads

    @classmethod
    @contextmanager
    def open(cls, path: Path, context: int, *, threads: int = 1, exact: bool = True) -> Iterator["LlamaCpp"]:
        """Open a GGUF file for up to `context` tokens at a time.

        `exact` keeps keys and values in 32 bits and computes attention plainly; otherwise both are as in a server.
        Raises EngineError if llama.cpp does not open the file.
        """
        loaded = library()
        _errors.clear()
        model = loaded.llama_model_load_from_file(str(path).encode(), loaded.llama_model_default_params())
        if not model:
            raise EngineError(f"llama.cpp does not open {path.name}: {'; '.join(_errors[-3:])}")
        wanted = loaded.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_outputs_max = wanted.n_outputs_max_per_seq = context
        wanted.n_ubatch = min(context, 512)
        wanted.n_threads = wanted.n_threads_batch = threads
        wanted.swa_full = True
        if exact:
            wanted.type_k = wanted.type_v = F32
            wanted.flash_attn_type = 0
        opened = loaded.llama_init_from_model(model, wanted)
        if not opened:
            loaded.llama_model_free(model)
            raise EngineError(f"llama.cpp cannot run {path.name}: {'; '.join(_errors[-3:])}")
        try:
            yield cls(model, opened, context, threads)
        finally:
            loaded.llama_free(opened)
            loaded.llama_model_free(model)

    @property
    def vocabulary(self) -> int:
        """The number of tokens, which is the length of a row of logits."""
        return int(self._library.llama_vocab_n_tokens(self._vocabulary))

    @property
    def parameters(self) -> int:
        """The number of weights that llama.cpp counts."""
        return int(self._library.llama_model_n_params(self._model))

    @property
    def bytes(self) -> int:
        """The size of the tensors in bytes."""
        return int(self._library.llama_model_size(self._model))

    @property
    def template(self) -> str | None:
        """The chat template of the file; None if it has none."""
        found: bytes | None = self._library.llama_model_chat_template(self._model, None)
        return None if found is None else found.decode()

    def forget(self) -> None:
        """Begin a new sequence."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits [T, V] of a sequence that begins with these tokens. Raises EngineError."""
        self.forget()
        return self.go_on(ids, every=True)

    def go_on(self, ids: Sequence[int], *, every: bool = False) -> NDArray[np.float32]:
        """Append tokens to the sequence; return the logits of the last [1, V], or of `every` one [T, V]."""
        count = len(ids)
        if not 0 < count <= self._positions:
            raise EngineError(f"{count} tokens do not fit into {self._positions} positions")
        outputs = (ctypes.c_int8 * count)(*([int(every)] * (count - 1)), 1)
        batch = _Batch(count, (_Int * count)(*ids), None, None, None, None, outputs)
        _errors.clear()
        if (code := self._library.llama_decode(self._context, batch)) != 0:
            raise EngineError(f"llama.cpp failed with code {code}: {'; '.join(_errors[-3:])}")
        rows, found = count if every else 1, self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (rows, self.vocabulary)).copy()

    def generate(self, ids: Sequence[int], most: int) -> list[int]:
        """Return up to `most` tokens that follow `ids` greedily; the end of the text is not among them."""
        self.forget()
        generated: list[int] = []
        following = list(ids)
        while len(generated) < most:
            token = int(self.go_on(following).argmax())
            if self._library.llama_vocab_is_eog(self._vocabulary, token):
                break
            generated.append(token)
            following = [token]
        return generated

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Return the token ids of a text; with `special` as a prompt: after the tokens that begin every text."""
        encoded = text.encode()
        room = len(encoded) + 8
        found = (_Int * room)()
        count = self._library.llama_tokenize(self._vocabulary, encoded, len(encoded), found, room, special, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenise {text!r}")
        return list(found[:count])

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        room = 64 * len(ids) + 64
        found = ctypes.create_string_buffer(room)
        tokens = (_Int * len(ids))(*ids)
        count = self._library.llama_detokenize(self._vocabulary, tokens, len(ids), found, room, True, False)
        return found.raw[: max(count, 0)].decode("utf-8", errors="replace")
