"""Nothing is sent into our own network, whatever a team names and whatever a name server answers."""

import socket
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from httpcore2 import ConnectTimeout
from pydantic import SecretStr

from app.deliveries import webhook
from app.deliveries.network import ForbiddenAddress, GuardedNetwork, check_address
from app.deliveries.sink import DeliveryFailed
from app.deliveries.store import Outgoing
from app.settings import ServerSettings
from tests.support.receiver import Receiver

LookUp = Callable[..., list[Any]]


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Lets names lead where a test says; returns the list of the names that were looked up."""

    def lead(*answers: list[str]) -> list[str]:
        asked: list[str] = []

        def look_up(host: str, port: int, **_: Any) -> list[Any]:
            asked.append(host)
            addresses = answers[min(len(asked), len(answers)) - 1]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        return asked

    return lead


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses to which a connection was tried; none is made."""
    tried: list[str] = []

    def connect(backend: Any, address: str, *_: Any) -> None:
        tried.append(address)
        raise ConnectTimeout("nobody is there")

    monkeypatch.setattr("httpcore2.SyncBackend.connect_tcp", connect)
    return tried


def outgoing(url: str) -> Outgoing:
    secret = SecretStr("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    return Outgoing(1, "msg_1", "webhook.test", None, "{}", 1, "webhook", url, (secret,))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",  # noqa: S104 - refused, not bound
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "::a9fe:a9fe",
        "::ffff:0:a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "fec0::1",
    ],
)
def test_an_address_inside_is_refused(address: str) -> None:
    with pytest.raises(ForbiddenAddress, match="MODELPRESS_WEBHOOK_NETWORKS"):
        check_address(ip_address(address), (), encrypted=True)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
def test_a_public_address_is_reached_over_tls_alone(address: str) -> None:
    check_address(ip_address(address), (), encrypted=True)
    with pytest.raises(ForbiddenAddress, match="https"):
        check_address(ip_address(address), (), encrypted=False)


def test_an_operator_can_allow_a_network() -> None:
    check_address(ip_address("10.1.2.3"), (ip_network("10.1.0.0/16"),), encrypted=False)
    with pytest.raises(ForbiddenAddress):
        check_address(ip_address("10.2.0.1"), (ip_network("10.1.0.0/16"),), encrypted=True)


@pytest.mark.parametrize("host", ["metadata.example", "2852039166", "0xA9FEA9FE"])
def test_a_name_that_leads_to_the_metadata_service_is_refused(
    settings: ServerSettings, resolve: Callable[..., list[str]], connected: list[str], host: str
) -> None:
    resolve(["169.254.169.254"])
    with pytest.raises(DeliveryFailed, match="not one of the public Internet"):
        webhook.send(outgoing(f"https://{host}/latest/meta-data"), settings)
    assert connected == []


def test_a_name_with_one_address_inside_is_refused(
    settings: ServerSettings, resolve: Callable[..., list[str]], connected: list[str]
) -> None:
    resolve(["93.184.215.14", "10.0.0.1"])
    with pytest.raises(DeliveryFailed, match=r"10\.0\.0\.1"):
        webhook.send(outgoing("https://two.example/"), settings)
    assert connected == []


def test_a_name_that_leads_inside_at_its_second_look_up_gains_nothing(
    settings: ServerSettings, resolve: Callable[..., list[str]], connected: list[str]
) -> None:
    asked = resolve(["93.184.215.14"], ["169.254.169.254"])
    with pytest.raises(DeliveryFailed, match="does not answer"):
        webhook.send(outgoing("https://rebinding.example/"), settings)
    assert (asked, connected) == (["rebinding.example"], ["93.184.215.14"])


def test_a_name_server_that_does_not_answer_holds_up_nobody(
    settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = threading.Event()
    monkeypatch.setattr(webhook, "EXCHANGE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answering.wait() and [])
    try:
        with pytest.raises(DeliveryFailed, match="does not answer"):
            webhook.send(outgoing("https://tarpit.example/"), settings)
    finally:
        answering.set()


def test_a_name_that_no_name_server_can_have_is_refused(settings: ServerSettings) -> None:
    with pytest.raises(DeliveryFailed, match="is not known"):
        webhook.send(outgoing(f"https://{'x' * 70}.example/"), settings)


def test_a_redirect_is_not_followed(settings: ServerSettings, receiver: Receiver) -> None:
    receiver.status, receiver.location = 302, "/elsewhere"
    with pytest.raises(DeliveryFailed, match="redirects are not followed"):
        webhook.send(outgoing(receiver.url), settings)
    assert [request.path for request in receiver.received] == ["/hook"]


@pytest.fixture
def dripping() -> Iterator[str]:
    """The address of a server that sends one byte of its answer now and then, and never the whole."""
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not ending.wait(0.05):
                    connection.sendall(b"x")
            except OSError:
                return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    ending.set()
    thread.join()
    listener.close()


def test_a_receiver_that_never_ends_its_answer_is_left(
    settings: ServerSettings, dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "EXCHANGE_SECONDS", 0.3)
    with pytest.raises(DeliveryFailed, match="does not answer"):
        webhook.send(outgoing(dripping), settings)


def test_a_deadline_that_is_over_connects_to_nobody(connected: list[str]) -> None:
    with pytest.raises(ConnectTimeout):
        GuardedNetwork((ip_network("127.0.0.0/8"),), 0.0, encrypted=False).connect_tcp("127.0.0.1", 1)
    assert connected == []
