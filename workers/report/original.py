"""What the card of an original says of its licence and languages. A stranger wrote it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
MOST_BYTES = 1 << 16
"""Of a card this much is read. The front matter of a large one has a few kilobytes."""
MOST_ITEMS = 200
LONGEST = 500
BLOCK = re.compile(r"\s{0,100}---[ \t]*\r?\n(.*?)\n---[ \t]*\r?(?:\n|$)", re.DOTALL)
WORDS = ("license", "license_name", "language")
LINK = re.compile(r"https?://[\w.~%/?#&=+:@,;!-]+|[\w.-]+", re.ASCII)


class PlainLoader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads YAML without aliases, by which a few lines expand to more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Return the next node. Raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def front_matter_of(directory: Path) -> Mapping[str, Any]:
    """Return licence and language from the card in a model's directory; empty where they cannot be read."""
    try:
        with (directory / CARD).open("rb") as file:
            beginning = file.read(MOST_BYTES).decode("utf-8", errors="replace")
        block = BLOCK.match(beginning.removeprefix("\ufeff"))
        stated = {} if block is None else PlainLoader(block[1]).get_single_data()
        return inherited(stated) if isinstance(stated, dict) else {}
    except Exception:  # noqa: BLE001 - the card is untrusted, and must not fail a job that is almost done
        return {}


def inherited(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields that a card of the result repeats, where they hold what they should."""
    found = {name: words(stated[name]) for name in WORDS if name in stated}
    link = stated.get("license_link")
    if isinstance(link, str) and len(link) <= LONGEST and LINK.fullmatch(link):
        found["license_link"] = link
    return {name: value for name, value in found.items() if value}


def words(stated: Any) -> str | list[str] | None:
    """Return a word or a list of words; None for all else. YAML reads `no`, the code of Norwegian, as False."""
    if isinstance(stated, list):
        return [word for each in stated[:MOST_ITEMS] if isinstance(word := words(each), str)]
    if stated is False:
        return "no"
    is_word = isinstance(stated, str) and stated.isprintable() and len(stated) <= LONGEST
    return stated if is_word else None
