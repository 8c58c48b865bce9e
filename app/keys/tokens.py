"""What a key looks like: `mp_<id>_<secret>`. The secret is random and long, so a fast hash of it suffices."""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from pydantic import SecretStr

ID_BYTES = 8
SECRET_BYTES = 32
TOKEN = re.compile(r"mp_(?P<id>[0-9a-f]{16})_(?P<secret>[A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Token:
    """A key as its holder sends it."""

    id: str
    secret: SecretStr

    @classmethod
    def make(cls) -> "Token":
        """Return a new token."""
        return cls(secrets.token_hex(ID_BYTES), SecretStr(secrets.token_urlsafe(SECRET_BYTES)))

    @classmethod
    def parse(cls, text: str) -> "Token | None":
        """Return the token that a text is, or None."""
        found = TOKEN.fullmatch(text)
        return None if found is None else cls(found["id"], SecretStr(found["secret"]))

    @property
    def text(self) -> str:
        """Return the token as its holder sends it. It is a secret."""
        return f"mp_{self.id}_{self.secret.get_secret_value()}"

    @property
    def sha256(self) -> str:
        """Return the hash that is stored in place of the secret."""
        return hashlib.sha256(self.secret.get_secret_value().encode()).hexdigest()

    def fits(self, sha256: str) -> bool:
        """Return whether this is the token of which the hash was stored, in a time that tells nothing."""
        return hmac.compare_digest(self.sha256, sha256)
