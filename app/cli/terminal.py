"""Where the commands write. Away from a terminal: plain lines, without control characters."""

from rich.console import Console
from rich.text import Text

STDOUT = Console(highlight=False, soft_wrap=True)
STDERR = Console(highlight=False, soft_wrap=True, stderr=True)


def paragraph(message: str) -> Text:
    """A message of somebody else's, in which brackets mean nothing and control characters are gone."""
    return Text("".join(character for character in message if character.isprintable() or character == "\n"))
