"""The architectures as the service lists them."""

from fastapi.testclient import TestClient

from modelpress.spec.architectures import ARCHITECTURES


def test_every_registered_architecture_is_listed_with_what_can_be_sent_and_asked(client: TestClient) -> None:
    listed = {entry.pop("model_type"): entry for entry in client.get("/architectures").json()["architectures"]}
    assert list(listed) == list(ARCHITECTURES)
    methods = {name: set(entry.pop("methods")) for name, entry in listed.items()}
    assert listed["qwen3"] == {"gguf": True, "fewer_heads": True, "mixture": False}
    assert listed["gpt2"] == {"gguf": False, "fewer_heads": False, "mixture": False}
    assert listed["qwen3_moe"] == {"gguf": False, "fewer_heads": True, "mixture": True}
    assert "tqcompressor" in methods["gpt2"] - methods["qwen3"]
    assert "experts" in methods["qwen3_moe"] - methods["qwen3"]
    assert "width" in methods["qwen3"] - methods["bloom"]
