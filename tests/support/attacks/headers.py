"""Headers of safetensors and GGUF files that lie, and such that cost memory or time."""

import struct
from typing import Any

from tests.support.attacks.attack import Attack, files
from tests.support.checkpoints import SHAPES, json_bytes, safetensors_bytes

REFUSED = ("invalid_model",)


def weights(header: bytes, data: bytes = b"", length: int | None = None) -> Attack:
    """Return the attack of a weights file with this header."""
    announced = struct.pack("<Q", len(header) if length is None else length)
    return Attack(files({"model.safetensors": announced + header + data}), REFUSED)


def entry(name: str = "a", **changes: Any) -> Attack:
    """Return the attack of a weights file with one tensor that is described in another way."""
    sound = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    return weights(json_bytes({name: sound | changes}), bytes(4))


def more(shapes: dict[str, tuple[int, ...]]) -> Attack:
    """Return the attack of a sound weights file with more tensors."""
    return Attack(files({"model.safetensors": safetensors_bytes(SHAPES | shapes)}), REFUSED)


MANY = b"{" + b",".join(b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}' % n for n in range(400_000)) + b"}"

ATTACKS = {
    "a length of 2**63": weights(b"{}", length=2**63),
    "a length of 2**64 - 1": weights(b"{}", length=2**64 - 1),
    "a header that is no JSON": weights(b"{" * 100),
    "a header that nests": weights(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a header of lists": weights(b'{"__metadata__":[' + b"[]," * 3_000_000 + b"[]]}"),
    "a header of many tensors": weights(MANY),
    "a key twice": weights(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}', bytes(4)),
    "a number of many digits": weights(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'),
    "a negative size": entry(shape=[-1]),
    "a size that is no number": entry(shape=["1"]),
    "a size that is true": entry(shape=[True]),
    "an unknown type": entry(dtype="evil"),
    "offsets beyond the file": entry(data_offsets=[10**18, 10**18 + 4]),
    "offsets the wrong way": entry(data_offsets=[4, 0]),
    "a block number of 5,000 digits": entry(name=f"model.layers.{'9' * 5000}.x.weight"),
    "a block number in other digits": more({"model.layers.\u0661.mlp.up_proj.weight": (12, 8)}),
    "a gap between blocks": more({"model.layers.999999.x.weight": (2, 2)}),
    "3,000 blocks": more({f"model.layers.{block}.x.weight": (1, 1) for block in range(3000)}),
    "a tensor without numbers": more({"model.layers.0.x.weight": (0, 4)}),
}
