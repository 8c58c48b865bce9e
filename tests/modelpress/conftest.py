"""Fixtures for the client side."""

from collections.abc import Iterator

import pytest

from tests.support import ports
from tests.support.loopback import Script, serving


@pytest.fixture
def script() -> Iterator[Script]:
    """A server on the loopback interface that a test tells what to answer."""
    with serving(Script()) as script:
        yield script


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    return ports.free_port()
