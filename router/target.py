"""Pure: what a request asks for: path and query."""

from typing import NamedTuple
from urllib.parse import unquote

import httptools


class Target(NamedTuple):
    raw_path: bytes
    query: bytes
    path: str  # as ASGI wants it


def target_of(url: bytes) -> Target:
    """Path and query of a request target that has been checked."""
    raw_path, query = split_target(url)
    path = raw_path.decode("ascii")
    return Target(raw_path, query, unquote(path) if "%" in path else path)


def split_target(target: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request target that has been checked."""
    if target[:1] != b"/":
        url = httptools.parse_url(target)
        return url.path or b"/", url.query or b""
    path, _, query = target.partition(b"?")
    return path, query
