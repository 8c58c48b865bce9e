"""How the API's server treats connections: promptly, and with a limit for whoever holds one without using it."""

import http.client
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from app.settings import ServerSettings
from tests.support.server import serving

DELAYED_ACKNOWLEDGEMENT_SECONDS = 0.04


@pytest.fixture
def address(settings: ServerSettings, engine: Engine) -> Iterator[str]:
    with serving(settings) as address:
        yield address


def test_no_answer_on_a_connection_that_is_used_again_waits_for_an_acknowledgement(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
    seconds = []
    for _ in range(20):
        asked = time.perf_counter()
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - asked)
    connection.close()

    assert min(seconds[1:]) < DELAYED_ACKNOWLEDGEMENT_SECONDS / 2
