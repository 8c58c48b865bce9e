"""An architecture is one new file and its entry in the registry."""

import json
import re

from tests.support.house import House

TOY = '''
"""Helium."""

from modelpress.spec.architectures.llama import llama_like

HELIUM = llama_like("helium")
'''

ASK = """
import json
from app.jobs.catalogue import architecture_list
from modelpress.spec.inventory import inventory

config = {"model_type": "helium", "tie_word_embeddings": True}
tensors = {"model.embed_tokens.weight": (10, 4), "model.layers.0.mlp.up_proj.weight": (6, 4)}
(listed,) = (known for known in architecture_list().architectures if known.model_type == "helium")
print(json.dumps({"accepted": inventory(config, tensors).model_type, "listed": listed.model_type}))
"""

REGISTRY = "modelpress/spec/architectures/__init__.py"
BATTERY = "tests/contracts/test_architectures.py"


def test_an_architecture_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("modelpress/spec/architectures/helium.py", TOY)
    house.add_line(
        REGISTRY,
        "from modelpress.spec.architectures.opt import OPT",
        "from modelpress.spec.architectures.helium import HELIUM",
    )
    house.add_line(REGISTRY, "PHI,", "HELIUM,")
    assert json.loads(house.run("-c", ASK)) == {"accepted": "helium", "listed": "helium"}
    tested = house.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", BATTERY, "-m", "full or not full", "-k", "[helium]"
    )
    (passed,) = re.findall(r"(\d+) passed", tested)
    assert int(passed) >= 7 and "skipped" not in tested
