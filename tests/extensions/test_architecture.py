"""An architecture is one new file and its entry in the registry."""

import json

from tests.support.house import House

TOY = '''
"""OLMo 2."""

from workers.compression.spec.architectures.architecture import Attention, Mlp
from workers.compression.spec.architectures.llama import GATED_MLP, llama_like

OLMO2 = llama_like(
    "olmo2",
    mlp=Mlp(GATED_MLP.entering, GATED_MLP.leaving, norm="post_feedforward_layernorm"),
    attention=Attention(norm="post_attention_layernorm"),
)
'''

ASK = """
import json
from app.jobs.catalogue import architecture_list
from workers.compression.spec.inventory import inventory

config = {"model_type": "olmo2", "tie_word_embeddings": True}
tensors = {"model.embed_tokens.weight": (10, 4), "model.layers.0.mlp.up_proj.weight": (6, 4)}
(listed,) = (known for known in architecture_list().architectures if known.model_type == "olmo2")
print(json.dumps({"accepted": inventory(config, tensors).model_type, "listed": listed.model_dump()}))
"""

REGISTRY = "workers/compression/spec/architectures/__init__.py"
BATTERY = "tests/contracts/test_architectures.py"


def test_an_architecture_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("workers/compression/spec/architectures/olmo2.py", TOY)
    house.add_line(
        REGISTRY,
        "from workers.compression.spec.architectures.opt import OPT",
        "from workers.compression.spec.architectures.olmo2 import OLMO2",
    )
    house.add_line(REGISTRY, "PHI,", "OLMO2,")
    assert json.loads(house.run("-c", ASK)) == {
        "accepted": "olmo2",
        "listed": {"model_type": "olmo2", "gguf": False, "fewer_heads": False},
    }
    tested = house.run("-m", "pytest", "-q", "-p", "no:cacheprovider", BATTERY, "-k", "[olmo2]")
    assert "7 passed" in tested
