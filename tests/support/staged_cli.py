"""The program `modelpress`, whose worker runs the children that lie in the directory of the first argument."""

import sys
from pathlib import Path

from modelpress.cli import main
from workers import child

if __name__ == "__main__":
    child.ROOT = Path(sys.argv.pop(1))
    main()
