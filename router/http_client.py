"""Shell: HTTP for commands, and for agents on Unix sockets. The only module that imports httpx.

Requests of users never pass here, nor what is asked several times a second (`router.poll_client`).
"""

import ssl
from dataclasses import dataclass
from typing import Protocol

import httpx

MAX_REPLY = 4 * 1024 * 1024  # bytes


class Unreachable(Exception):
    """No usable answer: connect, timeout, reset, a reply too large. The message says which."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes


class ControlClient(Protocol):
    """One base URL. Closed by whoever made it."""

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        """Raises Unreachable. Any status is a reply."""
        ...

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        """Send JSON. Raises Unreachable. Any status is a reply."""
        ...

    async def close(self) -> None: ...


class HttpClient:
    """Implements `ControlClient`. One base URL. `unix:/path` is a Unix socket. Close it when done."""

    def __init__(self, url: str, token: str | None = None, ca_file: str | None = None) -> None:
        self.url = url
        headers = {"authorization": f"Bearer {token}"} if token else {}
        socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        tls = ssl.create_default_context(cafile=ca_file) if url.startswith("https:") else False
        self._client = httpx.AsyncClient(
            base_url="http://agent" if socket else url,
            transport=httpx.AsyncHTTPTransport(
                uds=socket, verify=tls, limits=httpx.Limits(max_connections=4, keepalive_expiry=4.0)
            ),
            headers=headers,
            follow_redirects=False,
            trust_env=False,
        )

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        """Raises Unreachable. Any status is a reply."""
        return await self._send("GET", path, None, timeout)

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        """Send JSON. Raises Unreachable. Any status is a reply."""
        return await self._send("POST", path, body, timeout)

    async def close(self) -> None:
        await self._client.aclose()

    async def _send(self, method: str, path: str, body: bytes | None, timeout: float) -> Reply:  # noqa: ASYNC109
        headers = {"content-type": "application/json"} if body is not None else {}
        try:
            request = self._client.build_request(
                method, path, content=body, headers=headers, timeout=httpx.Timeout(timeout)
            )
            response = await self._client.send(request, stream=True)
            try:
                return Reply(response.status_code, await _read(response))
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise Unreachable(f"{self.url}{path}: {type(error).__name__} {error}".strip()) from error


async def _read(response: httpx.Response) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > MAX_REPLY:
            raise Unreachable(f"{response.url}: the reply is larger than {MAX_REPLY} bytes")
        chunks.append(chunk)
    return b"".join(chunks)
