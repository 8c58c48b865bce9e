"""The consoles that commands write to. Away from a terminal they write plain lines without control characters."""

import sys

from rich.console import Console
from rich.text import Text

WIDTH_OF_A_FILE = 160

STDOUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE)
STDERR = Console(highlight=False, soft_wrap=True, stderr=True)


def paragraph(message: str) -> Text:
    """Return a foreign message as text without markup and without control characters."""
    return Text("".join(character for character in message if character.isprintable() or character == "\n"))
