"""Pure: who may use the gateway: API keys, known only by their SHA-256.

    Keys(entries: Sequence[KeyEntry], admin: bytes | None)
    keys.caller(fields) -> Caller             raises Unauthorized; `fields`: headers by lower-case name
    keys.is_admin(headers) -> bool

No entries: the gateway is open (`keys.is_open`), and says so when it starts. A digest is looked up in a
dictionary and then compared in constant time: what a lookup's time could tell is about the digest of a guess,
which tells nothing about any key.
"""

import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from router.errors import Unauthorized
from router.ports import Caller

Headers = Sequence[tuple[bytes, bytes]]
Fields = Mapping[bytes, bytes]
ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """`digest`: SHA-256 of the key, 32 bytes."""

    digest: bytes
    caller: Caller


def digest(key: str) -> bytes:
    """What is stored of a key."""
    return sha256(key.encode()).digest()


class Keys:
    def __init__(self, entries: Sequence[KeyEntry] = (), admin: bytes | None = None) -> None:
        """`admin`: the digest of the admin key; None: nobody is admin."""
        self._callers = {entry.digest: entry for entry in entries}
        self._admin = admin

    @property
    def is_open(self) -> bool:
        return not self._callers

    @property
    def has_admin(self) -> bool:
        return self._admin is not None

    def caller(self, fields: Fields) -> Caller:
        if not self._callers:
            return ANYBODY
        found = presented(fields)
        if found is None:
            raise Unauthorized("no API key: send it as 'Authorization: Bearer KEY'")
        seen = sha256(found).digest()
        entry = self._callers.get(seen)
        if entry is None or not hmac.compare_digest(entry.digest, seen):
            raise Unauthorized("this API key is not known here")
        return entry.caller

    def is_admin(self, headers: Headers) -> bool:
        found = presented(dict(headers))
        if self._admin is None or found is None:
            return False
        return hmac.compare_digest(self._admin, sha256(found).digest())


def presented(fields: Fields) -> bytes | None:
    """The key a request shows: OpenAI's bearer token or Anthropic's x-api-key. Two different ones: none."""
    found: bytes | None = None
    authorization = fields.get(b"authorization")
    if authorization is not None:
        scheme, _, rest = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        found = rest.strip()
    other = fields.get(b"x-api-key")
    if other is not None:
        other = other.strip()
        if found is not None and found != other:
            return None
        found = other
    return found or None
