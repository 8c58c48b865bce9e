"""A format is one new file and its entry in the registry."""

import json

from tests.support.house import House

TOY = '''
"""The main checkpoint, with the names of the tensors in a file beside it."""

from pathlib import Path

from workers.compression.formats.safetensors import Safetensors
from workers.compression.formats.writer import Written
from workers.compression.overlay import Overlay


class Toy(Safetensors):
    def write(self, overlay: Overlay, destination: Path) -> Written:
        written = super().write(overlay, destination)
        (destination / "names.txt").write_text("\\n".join(map(overlay.written_name, overlay.tensor_names())))
        return written
'''

ASK = """
import json, sys
from pathlib import Path
from docs.render import formats
from modelpress.contract.recipe import Recipe
from tests.support.models import save_tiny_model
from workers.compression.formats import writer_of
from workers.compression.overlay import Overlay

recipe = Recipe.model_validate({"model": "local:x", "target_ratio": 1.3, "formats": ["safetensors", "toy"]})
here = Path(sys.argv[1])
save_tiny_model("llama", here / "source")
written = writer_of("toy").write(Overlay.open(here / "source"), here / "toy")
names = (written.directory / "names.txt").read_text().split()
field = Recipe.model_json_schema()["properties"]["formats"]
print(json.dumps({
    "recipe": recipe.formats, "written": "lm_head.weight" in names, "offered": "toy" in field["items"]["enum"],
    "documented": all("the names of the tensors" in text for text in (field["description"], formats())),
}))
"""

REGISTRY = "modelpress/spec/formats.py"
ENTRY = 'Format("toy", "a list", "the names of the tensors", ("anybody",), "workers.compression.formats.toy:Toy"),'


def test_a_format_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("workers/compression/formats/toy.py", TOY)
    house.add_line(REGISTRY, "DENSE,", ENTRY)
    told = house.run("-c", ASK, str(house.root / "scratch"))
    assert json.loads(told.splitlines()[-1]) == {
        "recipe": ["safetensors", "toy"],
        "written": True,
        "offered": True,
        "documented": True,
    }
    tested = house.run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/compression/formats/test_registry.py",
        "-k",
        "toy",
    )
    assert "2 passed" in tested
