"""Who may ask for what: bearer tokens and the rights that each has.

Owns the comparison of tokens, which takes the same time whatever is presented, and how callers are
told apart who present none. Knows nothing of methods, of gRPC or of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.errors import ForbiddenError, UnauthenticatedError

_SCHEME = "bearer "
_LONGEST_ADDRESS = 64
ANONYMOUS = ""
"""The client of whoever presents no token, where none is needed."""


class Right(StrEnum):
    """What a method does, and so what its caller must be allowed to."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """One token: whose it is, its secret's SHA-256, and what it allows."""

    client: str
    digest: bytes
    rights: frozenset[Right]

    @classmethod
    def of(cls, client: str, secret: str, rights: Sequence[Right]) -> Token:
        """Make one of a secret."""
        return cls(client, _digest(secret), frozenset(rights))


class Access:
    """All tokens; without any, everybody may do everything."""

    def __init__(self, tokens: Sequence[Token] = ()) -> None:
        self._tokens = tuple(tokens)

    @property
    def is_open(self) -> bool:
        """Whether no token is needed."""
        return not self._tokens

    def client(self, authorization: str | None, right: Right) -> str:
        """Who asks, if allowed to.

        Args:
            authorization: The header or metadata of this name, ``Bearer <secret>``.
            right: What the method needs.

        Raises:
            UnauthenticatedError: No token, or none that is known.
            ForbiddenError: It is known and does not allow this.
        """
        if self.is_open:
            return ANONYMOUS
        presented = authorization or ""
        if presented[: len(_SCHEME)].lower() != _SCHEME:
            raise UnauthenticatedError(
                "authorization: no token is presented; send `authorization: Bearer <token>`."
            )
        digest = _digest(presented[len(_SCHEME) :].strip())
        found: Token | None = None
        for token in self._tokens:  # all of them, so that the time tells nothing
            if hmac.compare_digest(token.digest, digest):
                found = token
        if found is None:
            raise UnauthenticatedError("authorization: the token is unknown; present another one.")
        if right not in found.rights:
            allowed = ", ".join(sorted(found.rights))
            raise ForbiddenError(
                f"authorization: this needs the right {right.value!r}, and the token allows "
                f"{allowed or 'nothing'}; present another one."
            )
        return found.client


def peer_client(address: str) -> str:
    """The client that whoever connects from an address is; no token's client has such a name.

    All of an IPv6 network of 64 bits is one, since one machine may have any address in it.
    """
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return f"@{address[:_LONGEST_ADDRESS]}"
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is None:
            return f"@{ipaddress.IPv6Network((known, 64), strict=False)}"
        known = known.ipv4_mapped
    return f"@{known}"


def _digest(secret: str) -> bytes:
    # Of equal length whatever is presented, so that lengths tell nothing either.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()
