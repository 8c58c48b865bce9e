"""Where the commands write. Away from a terminal: plain lines, without control characters."""

import sys

from rich.console import Console
from rich.text import Text

WIDTH_OF_A_FILE = 160

STDOUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
STDERR = Console(highlight=False, soft_wrap=True, stderr=True)


def paragraph(message: str) -> Text:
    """A message of somebody else's, in which brackets mean nothing and control characters are gone."""
    return Text("".join(character for character in message if character.isprintable() or character == "\n"))
