"""How the API's server treats connections: promptly, and with a limit for whoever holds one without using it."""

import gc
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from app.api import requests, server
from app.db import Sessions
from app.settings import ServerSettings
from tests.support.api import CONTENTS, finish
from tests.support.server import connect, serving
from tests.support.waiting import PATIENCE_SECONDS, wait_for

DELAYED_ACKNOWLEDGEMENT_SECONDS = 0.04


@pytest.fixture
def address(settings: ServerSettings, engine: Engine) -> Iterator[str]:
    with serving(settings) as address:
        yield address


def test_no_answer_on_a_connection_that_is_used_again_waits_for_an_acknowledgement(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=PATIENCE_SECONDS)
    seconds = []
    for _ in range(20):
        asked = time.perf_counter()
        connection.request("GET", "/livez")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - asked)
    connection.close()

    assert min(seconds[1:]) < DELAYED_ACKNOWLEDGEMENT_SECONDS / 2


def is_closed(connection: socket.socket) -> bool:
    """Wait for the other side to close the connection, and return whether it does."""
    connection.settimeout(PATIENCE_SECONDS)
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent", [b"", b"GET /livez HTTP/1.1\r\nHo", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\nGET /li"]
)
def test_a_connection_without_a_whole_request_is_closed(
    address: str, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    with connect(address) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_body_that_does_not_come_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.5)
    with connect(address) as connection:
        connection.sendall(
            b"POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["type"]) == (408, "/problems/body_too_slow")


def test_idle_connections_make_room_for_new_ones(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.PatientProtocol, "most_connections", 10)
    idle = [connect(address) for _ in range(40)]
    with httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        assert client.get("/livez").status_code == 200
    assert is_closed(idle[0])
    for connection in idle:
        connection.close()


def open_files(name: str) -> int:
    """Return how many descriptors of this process lead to a file of this name, deleted or not."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += name in str(link.readlink())
    return found


@pytest.fixture
def large(settings: ServerSettings, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a file that fits into no buffer of the network."""
    monkeypatch.setitem(CONTENTS, "model.safetensors", os.urandom(64 << 20))
    return f"/jobs/{finish(settings, sessions, tmp_path).id}"


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "checkpoint"])
def test_a_download_that_is_broken_off_closes_its_file(address: str, large: str, path: str) -> None:
    gc.disable()
    try:
        for _ in range(5):
            with connect(address) as connection:
                connection.sendall(f"GET {large}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                assert connection.recv(1000)
                wait_for(lambda: open_files("model.safetensors"))
        wait_for(lambda: not open_files("model.safetensors"))
    finally:
        gc.enable()


def test_a_large_file_and_its_ranges_arrive_whole_over_one_connection(address: str, large: str) -> None:
    whole = CONTENTS["model.safetensors"]
    first, last = 1_000_003, len(whole) - 7
    with httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        for _ in range(2):
            assert client.get(f"{large}/artifacts/model.safetensors").content == whole
            ranged = client.get(f"{large}/artifacts/model.safetensors", headers={"Range": f"bytes={first}-{last}"})
            assert (ranged.status_code, ranged.content) == (206, whole[first : last + 1])
            assert client.head(f"{large}/artifacts/model.safetensors").headers["content-length"] == str(len(whole))


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "checkpoint"])
def test_a_client_that_stops_reading_is_let_go(
    address: str, large: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "WRITE_SECONDS", 0.5)
    with connect(address) as connection:
        connection.sendall(f"GET {large}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_for(lambda: open_files("model.safetensors"))
        wait_for(lambda: not open_files("model.safetensors"))


@pytest.mark.parametrize("path", ["artifacts/model.safetensors", "checkpoint"])
def test_clients_that_do_not_read_their_downloads_make_room_for_new_ones(
    address: str, large: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.PatientProtocol, "most_connections", 5)
    unread = [connect(address) for _ in range(5)]
    for connection in unread:
        connection.sendall(f"GET {large}/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    wait_for(lambda: open_files("model.safetensors") == 5)
    with httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        assert client.get("/livez").status_code == 200
    for connection in unread:
        connection.close()
    wait_for(lambda: not open_files("model.safetensors"))


def test_streams_make_room_for_new_connections(
    address: str, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = httpx2.post(f"{address}/jobs", json=tiny, timeout=PATIENCE_SECONDS).json()["links"]["self"]
    monkeypatch.setattr(server.PatientProtocol, "most_connections", 5)
    streams = [connect(address) for _ in range(5)]
    for stream in streams:
        stream.sendall(f"GET {job}/events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert stream.recv(1000)
    with httpx2.Client(base_url=address, timeout=PATIENCE_SECONDS) as client:
        assert client.get("/livez").status_code == 200
    assert is_closed(streams[0])
    for stream in streams:
        stream.close()


def test_downloads_over_every_connection_leave_descriptors_for_the_rest(address: str) -> None:
    sockets_and_files = 2 * server.PatientProtocol.most_connections
    assert sockets_and_files + server.RESERVED_DESCRIPTORS <= server.descriptors()
