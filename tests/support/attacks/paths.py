"""Links, pipes and names that lead out of a model's directory."""

from tests.support.attacks.attack import Attack, files, linked, piped
from tests.support.checkpoints import SHAPES, json_bytes

OUT = "../../outside/secret"
REFUSED = ("invalid_model",)


def index(name: str) -> bytes:
    return json_bytes({"weight_map": dict.fromkeys(SHAPES, name)})


def indexed(name: str) -> Attack:
    return Attack(files({"model.safetensors": None, "model.safetensors.index.json": index(name)}), REFUSED)


ATTACKS = {
    **{
        f"{name} is a link out": Attack(linked(name, OUT), ("invalid_model", "no_safetensors"))
        for name in (
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "LICENSE",
            "chat_template.jinja",
            "additional_chat_templates/a.jinja",
            "notes.md",
        )
    },
    "a link to a directory outside": Attack(linked("additional_chat_templates", "../../outside"), REFUSED),
    "a link to a device": Attack(linked("tokenizer_config.json", "/dev/zero"), REFUSED),
    "a link to itself": Attack(linked("loop", "loop"), (*REFUSED, "")),
    **{
        f"{name} is a pipe": Attack(piped(name), ("invalid_model", "no_safetensors", "no_tokenizer"))
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    },
    "an index that climbs": indexed("../../outside/secret.safetensors"),
    "an index with an absolute name": indexed("/etc/passwd"),
    "an index of the parent": indexed("..safetensors"),
    "an index with a backslash": indexed("..\\x.safetensors"),
    "an index with a NUL": indexed("x\0.safetensors"),
}
