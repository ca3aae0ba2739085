"""Pure: addresses of servers and keys for them, as they are written in a YAML file or typed."""

from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from joulegate.errors import UserError


def typed(url: str, check: Callable[[str], str] | None = None) -> str:
    """As `check` (`http_url`) has it; the `/v1` of a client's base URL is left out. Raises UserError."""
    try:
        return (check or http_url)(url.rstrip("/").removesuffix("/v1"))
    except ValueError as error:
        raise UserError(str(error), "write it as http://127.0.0.1:8080") from error


def key_of(text: str | None) -> str | None:
    """A key or token as a header carries it; None if there is none. Raises UserError."""
    if text and not (text.isascii() and text.isprintable()):
        raise UserError("a key that no HTTP header can carry", "is it the right file or variable?")
    return text or None


def http_url(url: str) -> str:
    """`url` of a server, without a slash at its end. Raises ValueError."""
    parts = _parts(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected http://host:port or https://host:port, found {url!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"expected an address without a path: {parts.scheme}://{parts.netloc}")
    return url.rstrip("/")


def agent_url(url: str) -> str:
    """The same, or a Unix socket. Raises ValueError."""
    if url.startswith("unix:"):
        if not url.removeprefix("unix:").startswith("/"):
            raise ValueError("expected unix: and an absolute path, as unix:/run/joulegate/agent.sock")
        return url
    return http_url(url)


def _parts(url: str) -> SplitResult:
    if not url.isprintable() or " " in url:
        raise ValueError(f"not a URL: {url!r}")
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is not a number below 65536
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    return parts
