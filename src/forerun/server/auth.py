"""Who may ask: keys from a file, compared in constant time. Every path needs one but `/health`; nothing but the path decides that."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from forerun.server.errors import ApiError, answer
from forerun.types import InvalidInputError

OPEN_PATHS = frozenset({"/health"})
MIN_KEY_LENGTH = 8


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A tenant. The key itself is not kept."""

    name: str
    digest: bytes

    @classmethod
    def of(cls, name: str, key: str) -> ApiKey:
        return cls(name, hashlib.sha256(key.encode()).digest())


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """Keys, one a line: `key` or `name:key`; lines that begin with # are comments. Raises InvalidInputError naming the file, never a key."""

    def wrong(remedy: str) -> InvalidInputError:
        return InvalidInputError("api_key_file", str(path), remedy)

    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong("cannot be read: give a text file with one key a line") from error
    if stat.S_IMODE(mode) & 0o077:
        raise wrong(f"others than its owner may open it (mode {stat.S_IMODE(mode):04o}): chmod 600 it")
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, _, key = line.rpartition(":")
        name, key = name.strip() or f"key-{number}", key.strip()
        if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
            raise wrong(f"line {number} holds no key: give {MIN_KEY_LENGTH} or more printable ASCII characters without spaces")
        if name in keys or any(other.digest == ApiKey.of(name, key).digest for other in keys.values()):
            raise wrong(f"line {number} repeats a name or a key: give each once")
        keys[name] = ApiKey.of(name, key)
    if not keys:
        raise wrong("holds no key: give one key a line")
    return tuple(keys.values())


class KeyMiddleware:
    """Answers 401 itself: nothing behind it sees a request without a key. Sets `scope["tenant"]`."""

    def __init__(self, app: ASGIApp, keys: Sequence[ApiKey]) -> None:
        self.app = app
        self.keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.keys:
            await self.app(scope, receive, send)
            return
        key = self._matching(_given(scope))
        if key is None and scope["path"] not in OPEN_PATHS:
            await _refuse(scope, receive, send)
            return
        scope["tenant"] = key
        if key is not None and "served" in scope:
            scope["served"].tenant = key.name
        await self.app(scope, receive, send)

    def _matching(self, given: str | None) -> ApiKey | None:
        """Every key is compared, whichever matches."""
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).digest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return None if given is None else found


def _given(scope: Scope) -> str | None:
    """The key of a Bearer header, or the password of a Basic one (browsers ask people for that). Two headers are none."""
    headers = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(headers) != 1:
        return None
    scheme, _, value = headers[0].decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return str(value.strip())
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith("/page/")


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    scheme = "Basic" if _is_page(scope["path"]) else "Bearer"
    error = ApiError(
        401,
        "send a key of this server: Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"www-authenticate": f'{scheme} realm="forerun", charset="UTF-8"' if scheme == "Basic" else 'Bearer realm="forerun"'},
    )
    await answer(error, scope, receive, send)


def tenant_salt(key: ApiKey | None, cache_salt: str | None) -> str | None:
    """What sets a tenant's cached prompts and remembered texts apart: nobody else can name it. None where nobody asked for that."""
    if key is None and cache_salt is None:
        return None
    own = b"" if key is None else key.digest
    return hashlib.sha256(b"forerun tenant\0" + own + b"\0" + (cache_salt or "").encode()).hexdigest()
