"""A stage is one new file and its entry in the registry."""

import json

from tests.support.house import House

TOY = '''
"""Count the files of the checkpoint."""

from pathlib import Path

from workers.stages import write
from workers.stages.context import Context
from workers.stages.stage import Stage

NAME = "count"


def run(context: Context, directory: Path) -> None:
    files = len(list(write.directory_of(context).iterdir()))
    context.progress(1.0, f"{files} files")
    (directory / "count.txt").write_text(str(files))


STAGE = Stage(NAME, run)
'''

ASK = """
import json, sys
from pathlib import Path
from docs.render import stages
from tests.support.jobs import RECORDED, small_job
from workers.runner import walk

job = small_job(Path(sys.argv[1]), blocks=2, method="width", target_ratio=1.2)
reports = []
walk(job, reports.append, RECORDED)
(counted,) = job.work_dir.glob("*/count/count.txt")
details = [report.detail for report in reports if getattr(report, "stage", None) == "count"]
print(json.dumps({
    "done": type(reports[-1]).__name__, "counted": int(counted.read_text()) > 1, "told": bool(details),
    "documented": "count" in stages().split(", "),
}))
"""

REGISTRY = "workers/stages/registry.py"


def test_a_stage_is_one_file_and_its_entry_in_the_registry(house: House) -> None:
    house.add_file("workers/stages/count.py", TOY)
    house.add_line(REGISTRY, "STAGES: tuple[Stage, ...] = (", "from workers.stages import count")
    house.add_line(REGISTRY, "evaluate.STAGE,", "count.STAGE,")
    (house.root / "scratch").mkdir()
    told = house.run("-c", ASK, str(house.root / "scratch"))
    assert json.loads(told.splitlines()[-1]) == {
        "done": "DoneReport",
        "counted": True,
        "told": True,
        "documented": True,
    }
