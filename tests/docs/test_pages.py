"""What the documentation says about the code, and where its links lead."""

import re
from pathlib import Path

import pytest

from docs.render import PAGES, PARTS, ROOT, rendered

PROMISES = [ROOT / "docs" / "reliability.md", ROOT / "SECURITY.md"]
LINKED = [
    *PAGES,
    *PROMISES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "bench" / "RESULTS.md",
    *(ROOT / "docs" / "decisions").glob("*.md"),
]
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_the_code_says(page):
    text = page.read_text(encoding="utf-8")
    assert text == rendered(text), "run `make docs`"


def test_every_part_is_used_by_a_page():
    used = {
        name for page in PAGES for name in re.findall(r"<!-- ([a-z-]+):begin -->", page.read_text(encoding="utf-8"))
    }
    assert used == set(PARTS)


def test_an_unknown_part_is_refused():
    with pytest.raises(KeyError, match="colours"):
        rendered("<!-- colours:begin -->\n<!-- colours:end -->")


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = [page.parent / target for target in LINK.findall(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if not target.exists()] == []


def test_code_cites_decisions_that_exist():
    folders = ("modelpress", "app", "workers", "bench")
    sources = [path for folder in folders for path in Path(ROOT, folder).rglob("*.py")]
    cited = {name for path in sources for name in re.findall(r"docs/decisions/([\w-]+\.md)", path.read_text("utf-8"))}
    assert {name for name in cited if not (ROOT / "docs" / "decisions" / name).exists()} == set()


def test_the_first_screen_of_the_readme_ends_with_what_it_costs():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert lines.index("<!-- bits:end -->") < 60


@pytest.mark.parametrize("page", PROMISES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    named = re.findall(r"`((?:tests|workers|app)/[\w/]+\.py)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PROMISES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text(encoding="utf-8"))
    assert [name for file, name in named if f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8")] == []
