"""Pure: what a request asks for: path and query."""

from typing import NamedTuple
from urllib.parse import unquote

import httptools

from router.head import relayed


class Target(NamedTuple):
    raw_path: bytes
    query: bytes
    path: str  # as ASGI wants it
    relayed: bool  # the relay's, who may still refuse its spelling


def target_of(url: bytes) -> Target:
    """Path and query of a request target that has been checked."""
    raw_path, query = split_target(url)
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    return Target(raw_path, query, path, relayed(path))


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target that has been checked."""
    if target[:1] != b"/":
        url = httptools.parse_url(target)
        return url.path or b"/", url.query or b""
    path, _, query = target.partition(b"?")
    return path, query
