"""The computing child: walks one attempt through its stages. The only process with torch.

It is started by the supervisor, reads its assignment from standard input and reports in JSON lines. It holds no secret and
no connection. It ends with the supervisor: when standard input closes, nobody is left to report to.
"""

import logging
import os
import sys
import threading
from typing import IO

from pydantic import BaseModel

from workers.messages import Assignment
from workers.stages import walk


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    reports = take_standard_output()
    assignment = Assignment.model_validate_json(sys.stdin.readline())
    threading.Thread(target=exit_with_supervisor, daemon=True).start()

    def report(message: BaseModel) -> None:
        reports.write(message.model_dump_json() + "\n")
        reports.flush()

    return 0 if walk(assignment, report) else 1


def take_standard_output() -> IO[str]:
    """Keep the pipe to the supervisor for reports; whatever a library prints goes to the log."""
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return reports


def exit_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(os.EX_UNAVAILABLE)


if __name__ == "__main__":
    sys.exit(main())
