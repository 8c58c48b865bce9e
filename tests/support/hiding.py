"""Whether a process shows its environment to others of its user."""

import subprocess
import sys

LOOKS = """
import sys
from workers.cage import keep_capabilities

keep_capabilities(0)
try:
    open(f"/proc/{sys.argv[1]}/environ", "rb").read()
except PermissionError:
    sys.exit(3)
"""


def is_hidden(pid: int) -> bool:
    """Return whether a process of the same user, without any capabilities, is denied the environment of a process."""
    status = subprocess.run([sys.executable, "-c", LOOKS, str(pid)], check=False).returncode
    assert status in (0, 3), "neither shown nor denied"
    return status == 3
