"""Tokenizers, templates and other companions that ask for code, cannot be read, or are not what they are called."""

from typing import Any

from tests.support.attacks.attack import Attack, files
from tests.support.checkpoints import TOKENIZER, json_bytes

REFUSED = ("invalid_model", "no_tokenizer")
HARMLESS = ("",)
"""Accepted, because what is hostile in it is dropped before anybody reads it."""


def companion(name: str, content: bytes, codes: tuple[str, ...] = REFUSED) -> Attack:
    """Return the attack of a sound model with one companion in place of its own."""
    return Attack(files({name: content}), codes)


def tokenizer(**changes: Any) -> Attack:
    """Return the attack of a sound model whose tokenizer is changed."""
    return companion("tokenizer.json", json_bytes(TOKENIZER | changes))


CODE = {"auto_map": {"AutoTokenizer": ["evil/repo--tok.EvilTok", None]}, "tokenizer_class": "EvilTokenizer"}
MARKED = b"import pathlib\npathlib.Path(__file__).with_name('PWNED').touch()\n"

ATTACKS = {
    "code beside the tokenizer": Attack(
        files({"tokenizer_config.json": json_bytes(CODE), "tok.py": MARKED, "EvilTok.py": MARKED}), HARMLESS
    ),
    "code in the settings of generation": companion(
        "generation_config.json", json_bytes({"custom_generate": "evil/repo"}), HARMLESS
    ),
    "pickles beside the weights": companion("pytorch_model.bin", b"cos\nsystem\n(S'touch PWNED'\ntR.", HARMLESS),
    "a template without end": companion("chat_template.jinja", b"{% for a in range(9**9) %}{% endfor %}", HARMLESS),
    "a tokenizer that nests": companion("tokenizer.json", b"[" * 200_000),
    "a tokenizer that is a list": companion("tokenizer.json", b"[]"),
    "a tokenizer of the wrong kind": companion("tokenizer.json", b"\x80\x04\x95"),
    "a tokenizer without vocabulary": tokenizer(model={"type": "BPE", "vocab": {}, "merges": []}),
    "a vocabulary of lists": tokenizer(model={"type": "BPE", "vocab": {"a": [1]}, "merges": []}),
    "added tokens that are numbers": tokenizer(added_tokens=[7]),
    "an added token of 10**18": tokenizer(added_tokens=[{"content": "x", "id": 10**18, "special": False}]),
    "a config that is a list": companion("tokenizer_config.json", b"[]"),
    "a config that nests": companion("tokenizer_config.json", b'{"a":' * 400_000),
    "special tokens that are a text": companion("special_tokens_map.json", b'"x"'),
    "a vocabulary that is a list": companion("vocab.json", b"[1]"),
    "a template in another encoding": companion("chat_template.jinja", b"\xff\xfe"),
    "a template of two megabytes": companion("chat_template.jinja", b" " * 2_000_000),
    "a licence of two megabytes": companion("LICENSE", b" " * 2_000_000),
}
