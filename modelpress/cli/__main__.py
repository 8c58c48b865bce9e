"""`python -m modelpress.cli`: the command line without its script on the PATH."""

from modelpress.cli import main

main()
