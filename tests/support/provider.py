"""An OpenID provider on the loopback interface, which signs what a test asks it to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm


class Provider:
    """Publishes its public key, and counts how often it is asked for it."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.kid = "first"
        self.asked = 0
        self.text: str | None = None
        """What is answered in place of the keys."""

    def answer(self, path: str) -> dict[str, Any]:
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        self.asked += 1
        return {"keys": [ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True) | {"kid": self.kid, "use": "sig"}]}

    def token(self, key: Any = None, algorithm: str = "ES256", kid: str | None = None, **changes: Any) -> str:
        """Return a valid token of the team `search`, but for these changes; a claim that is None is left out."""
        claims = {
            "iss": self.issuer,
            "aud": "modelpress",
            "sub": "ada",
            "exp": datetime.now(UTC) + timedelta(minutes=5),
            "team": "search",
            "scope": "openid modelpress:read modelpress:submit",
        } | changes
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(
            claims, self.key if key is None else key, algorithm=algorithm, headers={"kid": kid or self.kid}
        )


@contextmanager
def provider() -> Iterator[Provider]:
    """Run a provider."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(made.answer(self.path)).encode()
            if made.text is not None and self.path == "/keys":
                body = made.text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Test output is no access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Provider(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
