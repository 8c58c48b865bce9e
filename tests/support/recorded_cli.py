"""The program `modelpress`, whose worker computes with the recorded meter."""

from modelpress.cli import main
from workers import supervisor

if __name__ == "__main__":
    supervisor.RUNNER = "tests.support.meter"
    main()
