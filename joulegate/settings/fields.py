"""Pure: the types of values that more than one section takes."""

from collections.abc import Iterable, Iterator
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from joulegate.settings.base import Fault, Route

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@/-]+$")]
Label = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")]
Positive = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]


def _http_url(url: str) -> str:
    parts = _parts(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"expected http://host:port or https://host:port, found {url!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"expected an address without a path: {parts.scheme}://{parts.netloc}")
    return url.rstrip("/")


def _agent_url(url: str) -> str:
    if url.startswith("unix:"):
        if not url.removeprefix("unix:").startswith("/"):
            raise ValueError("expected unix: and an absolute path, as unix:/run/joulegate/agent.sock")
        return url
    return _http_url(url)


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises when it is not a number below 65536
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    return parts


def _redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected redis://host:port/0, rediss:// with TLS, or unix:///path")
    return url


HttpUrl = Annotated[str, AfterValidator(_http_url)]
AgentUrl = Annotated[str, AfterValidator(_agent_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]  # it may hold a password


def repeated(what: str, names: Iterable[tuple[Route, str]]) -> Iterator[Fault]:
    """A fault at the place of every name that came before."""
    seen: set[str] = set()
    for path, name in names:
        if name in seen:
            yield Fault(path, f"{what} {name!r} is there twice", f"each {what} can be listed once")
        seen.add(name)
