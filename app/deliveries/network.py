"""Connections to addresses that a stranger has named: none into our own network, and none for ever.

A name is looked up once, by whoever connects, and the connection goes to the address that was checked. So a name that
leads elsewhere at the next look-up gains nothing.
"""

import socket
import ssl
import threading
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, Queue
from time import monotonic
from typing import Any

from httpcore2 import ConnectTimeout, NetworkBackend, NetworkStream, SyncBackend

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
NAT64 = IPv6Network("64:ff9b::/96")
"""Addresses that stand for those of IPv4."""
UNICAST = IPv6Network("2000::/3")
"""The only addresses of IPv6 that are given out for the public Internet."""
SHORTEST_SECONDS = 0.001
LOOK_UPS = threading.BoundedSemaphore(32)
"""Names that are looked up at the same time, including those for which nobody waits any more."""


class ForbiddenAddress(Exception):
    """A name or an address that leads where nothing may be sent."""


class GuardedNetwork(NetworkBackend):
    """Connects to public addresses, and to those of `allowed` networks, within one deadline for everything."""

    def __init__(self, allowed: Sequence[Network], seconds: float, *, encrypted: bool) -> None:
        """Guard the connections of one exchange that may take so long.

        Args:
            encrypted: whether TLS is used; without it only the allowed networks are reached.
        """
        self.allowed = allowed
        self.deadline = monotonic() + seconds
        self.encrypted = encrypted
        self.backend = SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """Return a connection to an address that was checked. Raises ForbiddenAddress where there is none."""
        address = self.checked(host, port)
        stream = self.backend.connect_tcp(address, port, self.left(), local_address, socket_options)
        return PromptStream(stream, self)

    def checked(self, host: str, port: int) -> str:
        """Return an address of the host. Raises ForbiddenAddress if any of its addresses is forbidden."""
        addresses = look_up(host, port, self.left())
        for address in addresses:
            check_address(ip_address(address), self.allowed, encrypted=self.encrypted)
        return addresses[0]

    def left(self) -> float:
        """Return the seconds that are left. Raises ConnectTimeout where none are."""
        left = self.deadline - monotonic()
        if left < SHORTEST_SECONDS:
            raise ConnectTimeout("it took too long")
        return left


def look_up(host: str, port: int, seconds: float) -> list[str]:
    """Return the addresses of a host.

    Raises:
        ForbiddenAddress: it has none.
        ConnectTimeout: its name server has not answered within the time, of which the system's look-up knows nothing.
    """
    deadline = monotonic() + seconds
    if not LOOK_UPS.acquire(timeout=seconds):
        raise ConnectTimeout("too many name servers do not answer")
    answers: Queue[list[Any] | Exception] = Queue(1)

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)
        finally:
            LOOK_UPS.release()

    threading.Thread(target=ask, name="look-up", daemon=True).start()
    try:
        found = answers.get(timeout=max(deadline - monotonic(), SHORTEST_SECONDS))
    except Empty:
        raise ConnectTimeout(f"the name server of {host} does not answer") from None
    if isinstance(found, Exception):
        raise ForbiddenAddress(f"the host {host} is not known: {found}") from None
    return [str(entry[4][0]).partition("%")[0] for entry in found]


class PromptStream(NetworkStream):
    """A connection whose every step ends by the deadline of the exchange."""

    def __init__(self, stream: NetworkStream, guard: GuardedNetwork) -> None:
        self.stream = stream
        self.guard = guard

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.guard.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.stream.write(buffer, self.guard.left())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        return PromptStream(self.stream.start_tls(ssl_context, server_hostname, self.guard.left()), self.guard)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


def check_address(address: Address, allowed: Sequence[Network], *, encrypted: bool) -> None:
    """Raise ForbiddenAddress for an address to which nothing may be sent."""
    real = unwrapped(address)
    if any(real in network or address in network for network in allowed):
        return
    if not real.is_global or real.is_multicast or (isinstance(real, IPv6Address) and real not in UNICAST):
        raise ForbiddenAddress(
            f"the address {address} is not one of the public Internet; "
            "an operator can allow its network in MODELPRESS_WEBHOOK_NETWORKS"
        )
    if not encrypted:
        raise ForbiddenAddress("http is for networks in MODELPRESS_WEBHOOK_NETWORKS alone; use https")


def unwrapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for; any other as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = None if address.teredo is None else address.teredo[1]
    return address.ipv4_mapped or address.sixtofour or teredo or address
