"""The health check of the API's container: exits with 0 if the API in this container is ready."""

import http.client
import sys

from app.settings import Settings

TIMEOUT_SECONDS = 8.0


def main() -> None:
    """Exit with a message unless the API is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", Settings().port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", "/readyz")
        status = connection.getresponse().status
    except OSError as error:
        sys.exit(f"the API does not answer: {error}")
    if status != http.HTTPStatus.OK:
        sys.exit(f"the API is not ready: it answers {status}")


if __name__ == "__main__":
    main()
