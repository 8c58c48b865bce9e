"""The commands that the pages of this repository tell readers to call."""

import re
from functools import cache

from tests.support.house import ROOT

LEFT_OUT = {"CHANGELOG.md", "bench/RESULTS.md"}
"""What was, and what is generated: of its commands, `CONTRIBUTING.md` has one that stands for all."""
PROGRAMS = r"(?:modelpress|\.venv/bin/modelpress|make|python|docker|pip|curl)"
LINE = re.compile(rf"^    (?:\$ )?((?:[A-Z_]+=\S+ +|…\s+)*{PROGRAMS} .*(?:\n        .*)*)", re.MULTILINE)
INLINE = re.compile(rf"`((?:[A-Z_]+=\S+ )*{PROGRAMS} [^`\n]+)`")
REMARK = re.compile(r"\s{2,}#\s.*")
PART = re.compile(r'^    ("\w+": {.*})$', re.MULTILINE)
PYTHON = re.compile(r"^    from \w+ import .*\n(?:(?:    .*)?\n)*", re.MULTILINE)


@cache
def commands() -> dict[str, str]:
    """Return every command of the pages, without its remark, and the page that names it."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.md")):
        page = path.relative_to(ROOT).as_posix()
        if page not in LEFT_OUT and not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            text = path.read_text(encoding="utf-8")
            for command in (*LINE.findall(text), *INLINE.findall(text)):
                found.setdefault(REMARK.sub("", command).strip(), page)
    return found


def python_in(page: str) -> list[str]:
    """Return the Python programs of a page, still indented."""
    return PYTHON.findall((ROOT / page).read_text(encoding="utf-8"))


def parts_of_recipes() -> list[str]:
    """Return the parts of recipes that stand alone on a line of a page."""
    found = [part for path in sorted((ROOT / "docs").glob("*.md")) for part in PART.findall(path.read_text("utf-8"))]
    return [part for part in found if '"type"' not in part and "…" not in part]
