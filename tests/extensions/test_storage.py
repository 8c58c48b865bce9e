"""A storage backend is one new file and its entry in the registry."""

import json
from pathlib import Path

from tests.support.house import House

TOY = Path("tests/support/memory_storage.py")

ASK = """
import json, sys
from pathlib import Path
from app.errors import UnknownStorage
from app.settings import Settings
from app.storage.registry import open_storage

result = Path(sys.argv[1])
result.mkdir()
(result / "config.json").write_bytes(b"{}")
storage = open_storage(Settings(storage_url="memory://here").artifacts_url)
(stored,) = storage.publish("job_1", 1, result)
try:
    open_storage("tape://here")
except UnknownStorage as error:
    offered = "memory://" in str(error)
read = b"".join(storage.open("job_1", 1, stored.name, 0, stored.bytes)).decode()
print(json.dumps({"chosen": type(storage).__module__, "read": read, "offered": offered}))
"""

REGISTRY = "app/storage/registry.py"


def test_a_storage_backend_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("app/storage/memory.py", (house.root / TOY).read_text())
    house.add_line(
        REGISTRY,
        "from app.storage.directory import DirectoryStorage",
        "from app.storage.memory import MemoryStorage",
    )
    house.add_line(REGISTRY, '"file": DirectoryStorage.at,', '"memory": MemoryStorage.at,')
    assert json.loads(house.run("-c", ASK, str(house.root / "result"))) == {
        "chosen": "app.storage.memory",
        "read": "{}",
        "offered": True,
    }
