"""Shell: what is asked over and over (probes, scrapes, agents), on connections of the data plane's kind.

The same three calls as `router.http_client.HttpClient`, at a tenth of its CPU: several such requests a second
for each instance would otherwise cost more than the requests of users. Plain TCP and TLS; a Unix socket is
`HttpClient`'s.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

from joulegate.units import Seconds
from router.errors import GatewayError
from router.http_client import MAX_REPLY, ControlClient, HttpClient, Reply, Unreachable
from router.limits import UpstreamLimits
from router.ports import Endpoint, Engine, Recall
from router.upstream import UpstreamPool

LIMITS = UpstreamLimits(buffer=MAX_REPLY)  # read whole: reading is not stopped before it is too much


@dataclass(frozen=True, slots=True)
class Place:
    """One base URL, taken apart."""

    endpoint: Endpoint
    prefix: str  # of every path
    lines: bytes  # header lines of every request


class PollClient:
    """One base URL (http or https). Close it when done."""

    def __init__(
        self,
        url: str,
        token: str | None = None,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | None = None,
    ) -> None:
        """`client_cert`: files of the certificate to show, and of its key."""
        self.url = url
        self._place = place_of(url, token, ca_file, client_cert)
        self._pool = UpstreamPool(LIMITS)

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        """Raises Unreachable. Any status is a reply. `timeout`: seconds for all of it."""
        return await self._ask(b"GET", path, b"", b"", timeout)

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        """Send JSON, which may arrive twice. Raises Unreachable. Any status is a reply."""
        framing = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        return await self._ask(b"POST", path, framing, body, timeout)

    async def close(self) -> None:
        await self._pool.aclose()

    async def _ask(self, method: bytes, path: str, framing: bytes, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        place = self._place
        target = (place.prefix + path).encode()
        message = b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, target, place.lines, framing, body)
        try:
            async with asyncio.timeout(timeout):
                async with self._pool.exchange(
                    place.endpoint,
                    [message],
                    head_only=False,
                    with_body=False,
                    repeatable=True,
                    sent=_not_noted,
                ) as reply:
                    answer = await reply.read(MAX_REPLY)
        except TimeoutError as error:
            raise Unreachable(f"{self.url}{path}: no answer in {timeout:g} s") from error
        except GatewayError as error:
            raise Unreachable(f"{self.url}{path}: {error.message}") from error
        if answer is None:
            raise Unreachable(f"{self.url}{path}: the reply is larger than {MAX_REPLY} bytes")
        return Reply(reply.status, answer)


def control_client(
    url: str,
    token: str | None = None,
    ca_file: str | None = None,
    client_cert: tuple[str, str] | None = None,
) -> ControlClient:
    """What fits the URL."""
    if url.startswith("unix:"):
        return HttpClient(url, token)
    return PollClient(url, token, ca_file, client_cert)


def place_of(
    url: str, token: str | None, ca_file: str | None, client_cert: tuple[str, str] | None = None
) -> Place:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    host = parts.hostname or ""
    endpoint = Endpoint(
        name=url,
        pool="",
        engine=Engine.OPENAI,
        host=host,
        port=parts.port or (443 if tls else 80),
        tls=tls,
        ca_file=ca_file,
        client_cert=client_cert,
    )
    lines = b"host: %b\r\naccept: */*\r\n" % parts.netloc.rpartition("@")[2].encode()
    if token:
        lines += b"authorization: Bearer %b\r\n" % token.encode()
    return Place(endpoint, parts.path.rstrip("/"), lines)


def _not_noted(_: Seconds, __: Recall) -> None:
    """When a poll was written is of no interest, and none is taken back."""
