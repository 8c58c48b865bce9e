"""`modelpress`, whose workers compute with `bench.chaos.computing`: `python -m bench.chaos.program worker`."""

from modelpress.cli import main
from workers import supervisor

if __name__ == "__main__":
    supervisor.RUNNER = "bench.chaos.computing"
    main()
