"""`python -m app.cli`: the command line without its script on the PATH."""

from app.cli import main

main()
