"""Bearer tokens of the company's OpenID provider, accepted in place of keys."""

import re
import threading
from typing import Any

import httpx2
import jwt

from app.errors import IdentityProviderUnavailable, Unauthenticated
from app.keys.callers import Caller
from app.settings import OidcSettings
from modelpress.contract.access import Scope

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a private key. One by a shared secret could be forged with what the provider publishes."""
REQUIRED = ("exp", "iss", "aud", "sub")
LEEWAY_SECONDS = 30.0
PROVIDER_SECONDS = 3.0
DISCOVERY = "/.well-known/openid-configuration"
LONGEST_SUBJECT = 255
SCOPE_PREFIX = "modelpress:"
TEAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class OidcTokens:
    """Finds out who sends a token of the provider. The provider's keys are asked for when they are first needed."""

    def __init__(self, settings: OidcSettings) -> None:
        self.settings = settings
        self.lock = threading.Lock()
        self.keys: jwt.PyJWKClient | None = None

    def caller(self, text: str, request_id: str | None) -> Caller:
        """Return who sends this token.

        Raises:
            Unauthenticated: it is no valid token for this service, or names no team.
            IdentityProviderUnavailable: the provider's keys cannot be had.
        """
        claims = self.claims(text, self.key(text))
        subject = claims["sub"]
        if not subject.isprintable() or len(subject) > LONGEST_SUBJECT:
            raise Unauthenticated(f"the token names no subject of 1 to {LONGEST_SUBJECT} printable characters")
        team = claims.get(self.settings.team_claim)
        if not isinstance(team, str) or not TEAM.fullmatch(team):
            raise Unauthenticated(f"the token names no team in its claim '{self.settings.team_claim}'")
        return Caller(team, f"oidc:{subject}", scopes_of(claims.get(self.settings.scope_claim)), request_id)

    def key(self, text: str) -> jwt.PyJWK:
        """Return the key of the provider that a token says it is signed with."""
        try:
            return self.provider().get_signing_key_from_jwt(text)
        except jwt.PyJWKClientConnectionError as error:
            raise unavailable(self.settings.issuer) from error
        except (jwt.PyJWTError, RecursionError) as error:
            raise invalid(error) from error
        except (OSError, ValueError) as error:  # the connection broke, or what came is no JSON
            raise unavailable(self.settings.issuer) from error

    def claims(self, text: str, key: jwt.PyJWK) -> dict[str, Any]:
        """Return what a token claims, once its signature, times, issuer and audience are checked."""
        try:
            claims: dict[str, Any] = jwt.decode(
                text,
                key,
                algorithms=ALGORITHMS,
                audience=self.settings.audience,
                issuer=self.settings.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED)},
            )
        except (jwt.PyJWTError, RecursionError) as error:
            raise invalid(error) from error
        return claims

    def provider(self) -> jwt.PyJWKClient:
        """Return what fetches and keeps the provider's keys."""
        with self.lock:
            if self.keys is None:
                self.keys = jwt.PyJWKClient(keys_address(self.settings.issuer), timeout=PROVIDER_SECONDS)
            return self.keys


def keys_address(issuer: str) -> str:
    """Return where the provider publishes its keys. Raises IdentityProviderUnavailable where it does not say so."""
    try:
        answer = httpx2.get(issuer.rstrip("/") + DISCOVERY, timeout=PROVIDER_SECONDS).raise_for_status().json()
    except (httpx2.HTTPError, ValueError) as error:
        raise unavailable(issuer) from error
    address = answer.get("jwks_uri") if isinstance(answer, dict) and answer.get("issuer") == issuer else None
    if not isinstance(address, str):
        raise unavailable(issuer)
    return address


def scopes_of(claim: Any) -> frozenset[Scope]:
    """Return the scopes in a claim: words or a list, of which those count that begin with `modelpress:`."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    named = {str(word).removeprefix(SCOPE_PREFIX) for word in words if str(word).startswith(SCOPE_PREFIX)}
    return frozenset(scope for scope in Scope if scope.value in named)


def invalid(error: Exception) -> Unauthenticated:
    """Return the error for a token that cannot be read, or is not valid here."""
    return Unauthenticated(f"the token is not valid here: {type(error).__name__}")


def unavailable(issuer: str) -> IdentityProviderUnavailable:
    """Return the error for a provider whose keys cannot be had."""
    return IdentityProviderUnavailable(f"the OpenID provider {issuer} does not answer as one; try again later")
