"""The architectures as the service lists them."""

from fastapi.testclient import TestClient

from modelpress.spec.architectures import ARCHITECTURES, INFERRED


def test_every_architecture_is_listed_with_what_can_be_sent_and_asked(client: TestClient) -> None:
    listed = {entry.pop("model_type"): entry for entry in client.get("/architectures").json()["architectures"]}
    assert list(listed) == [*ARCHITECTURES, *INFERRED.understood]
    methods = {name: set(entry.pop("methods")) for name, entry in listed.items()}
    assert listed["qwen3"] == {"known": "registered", "gguf": True, "fewer_heads": True, "mixture": False}
    assert listed["gpt2"] == {"known": "registered", "gguf": False, "fewer_heads": False, "mixture": False}
    assert listed["qwen3_moe"] == {"known": "registered", "gguf": False, "fewer_heads": True, "mixture": True}
    assert listed["nanochat"] == {"known": "inferred", "gguf": False, "fewer_heads": True, "mixture": False}
    assert "tqcompressor" in methods["gpt2"] - methods["qwen3"]
    assert "experts" in methods["qwen3_moe"] - methods["qwen3"]
    assert "width" in methods["qwen3"] - methods["bloom"]
    assert "fusion" in methods["qwen3"] - methods["minicpm3"]


def test_what_is_refused_is_listed_with_the_reason(client: TestClient) -> None:
    refused = {entry["model_type"]: entry["reason"] for entry in client.get("/architectures").json()["refused"]}
    assert refused == INFERRED.refused
    assert "state of its own kind" in refused["rwkv"]
