"""The whole product in one command, for somebody who has just cloned the repository: `make demo`."""
