"""What a browser sends, and what it finds on a page."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Self

BROWSER = {"Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "Sec-Fetch-Site": "same-origin"}


@dataclass
class Page(HTMLParser):
    """The elements and the text of a page."""

    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, html: str) -> Self:
        """Return what is on a page."""
        page = cls()
        page.feed(html)
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """Return everything that can be read, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def values(self, attribute: str) -> list[str]:
        """Return every value of an attribute."""
        return [attributes[attribute] for _, attributes in self.elements if attribute in attributes]

    def of_tag(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of every element of this kind."""
        return [attributes for name, attributes in self.elements if name == tag]
