"""The whole road in one command, for somebody who has just cloned this: `make demo`."""
