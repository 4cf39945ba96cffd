"""Tokens and addresses as configured: what is wrong with them, and the secrets behind them.

Knows nothing of how tokens are compared or of who listens.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.protocol import FieldError
from server.access import Access, Token
from server.config.fields import ServerSection, TokenSection
from server.errors import ListenError, ServerError

_SHORTEST_SECRET = 16
_LONGEST_SECRET_BYTES = 4096


class SecretError(ServerError):
    """A token's secret cannot be had, or is none."""

    code = "secret"


def problems_of_access(server: Mapping[str, Any]) -> Iterator[FieldError]:
    """What no single field of the section can know; looks only at values of the right type."""
    tokens = server.get("tokens") or []
    if isinstance(tokens, list):
        clients: set[Any] = set()
        for index, token in enumerate(tokens):
            if not isinstance(token, dict):
                continue
            if (token.get("file") is None) == (token.get("env") is None):
                yield FieldError(
                    path=f"server.tokens.{index}",
                    message="needs exactly one of `file` and `env`",
                    remedy="Say where the secret lies.",
                )
            if token.get("client") in clients:
                yield FieldError(
                    path=f"server.tokens.{index}.client",
                    message=f"{token['client']!r} has a token already",
                    remedy="Give each client one token.",
                )
            clients.add(token.get("client"))


def check_exposure(server: ServerSection) -> None:
    """Refuse to listen where others ask, too, without asking who they are.

    Raises:
        ListenError: There is no token, and nobody said that this is wanted.
    """
    if not (server.tokens or server.allow_anonymous or is_loopback(server.host)):
        raise ListenError(
            f"server.host: others reach {server.host}, and nobody is asked for a token.",
            remedy="Configure server.tokens, or set server.allow_anonymous if something else keeps "
            "others out.",
        )


def access_of(server: ServerSection, environment: Mapping[str, str] = os.environ) -> Access:
    """Who may ask.

    Raises:
        SecretError: A secret is missing, is too short to be one, or is another client's too.
    """
    tokens: list[Token] = []
    for index, section in enumerate(server.tokens):
        token = Token.of(section.client, _secret(section, index, environment), section.rights)
        for other in tokens:
            if other.digest == token.digest:
                raise SecretError(
                    f"server.tokens.{index}: {token.client} has the same secret as {other.client}.",
                    remedy="Give each client a secret of its own.",
                )
        tokens.append(token)
    return Access(tokens)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _secret(token: TokenSection, index: int, environment: Mapping[str, str]) -> str:
    where = f"server.tokens.{index}"
    if token.file is not None:
        try:
            with Path(token.file).expanduser().open("rb") as file:
                text = file.read(_LONGEST_SECRET_BYTES + 1).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SecretError(
                f"{where}.file: {token.file} cannot be read ({error}).",
                remedy="Name a file that this user can read and that holds the secret.",
            ) from error
    else:
        text = environment.get(token.env or "", "").strip()
    if not _SHORTEST_SECRET <= len(text) <= _LONGEST_SECRET_BYTES:
        source = "file" if token.file is not None else f"env: {token.env}"
        raise SecretError(
            f"{where}.{source} holds {len(text)} characters, which is no secret.",
            remedy=f"Put at least {_SHORTEST_SECRET} random ones into it, such as those of "
            "`openssl rand -hex 32`.",
        )
    if not (text.isascii() and text.isprintable()):
        raise SecretError(
            f"{where}: the secret holds characters that no header carries.",
            remedy="Use printable ASCII, such as that of `openssl rand -hex 32`.",
        )
    return text
