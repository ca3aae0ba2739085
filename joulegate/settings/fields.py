"""Pure: the types of values that more than one section takes."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from joulegate.addresses import agent_url, http_url
from joulegate.settings.base import Fault, Route

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:@/-]+$")]
Label = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9_.-]+$")]
Positive = Annotated[float, Field(gt=0)]
Percent = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=1)]


def _redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("expected redis://host:port/0, rediss:// with TLS, or unix:///path")
    return url


HttpUrl = Annotated[str, AfterValidator(http_url)]
AgentUrl = Annotated[str, AfterValidator(agent_url)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]  # it may hold a password


def repeated(what: str, names: Iterable[tuple[Route, str]]) -> Iterator[Fault]:
    """A fault at the place of every name that came before."""
    seen: set[str] = set()
    for path, name in names:
        if name in seen:
            yield Fault(path, f"{what} {name!r} is there twice", f"each {what} can be listed once")
        seen.add(name)
