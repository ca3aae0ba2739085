"""The client of probes and agents against real sockets: what it asks, takes, and calls unreachable."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from router.http_client import MAX_REPLY, HttpClient, Unreachable
from router.poll_client import PollClient, control_client

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@asynccontextmanager
async def server(script: Script) -> AsyncIterator[str]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(one, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_get_and_post_share_one_connection() -> None:
    heard: list[bytes] = []
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        heard.append(await head_of(reader))
        writer.write(OK)
        heard.append(await head_of(reader) + await reader.readexactly(7))
        writer.write(OK.replace(b"200 OK", b"409 Conflict"))

    async with server(script) as url:
        client = PollClient(f"{url}/node/", token="secret")
        got = await client.get("/v1/gpus", 20.0)
        posted = await client.post("/v1/sync", b'{"a":1}', 20.0)
        await client.close()
    assert (got.status, got.body, posted.status) == (200, b"ok", 409)
    assert heard[0].startswith(b"GET /node/v1/gpus HTTP/1.1\r\n")
    assert b"authorization: Bearer secret\r\n" in heard[0]
    assert f"host: {url.removeprefix('http://')}\r\n".encode() in heard[0]
    assert heard[1].startswith(b"POST /node/v1/sync HTTP/1.1\r\n")
    assert b"content-length: 7\r\n" in heard[1]
    assert heard[1].endswith(b'\r\n\r\n{"a":1}')
    assert connections == 1


async def test_a_large_page_in_many_reads_is_read_whole() -> None:
    page = b"x" * (MAX_REPLY - 1)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n" % len(page))
        writer.write(page + b"\r\n0\r\n\r\n")
        await writer.drain()

    async with server(script) as url:
        client = PollClient(url)
        assert (await client.get("/metrics", 20.0)).body == page
        await client.close()


async def test_an_endless_reply_is_refused() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with server(script) as url:
        client = PollClient(url)
        with pytest.raises(Unreachable, match="larger than"):
            await client.get("/metrics", 20.0)
        await client.close()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsome"])
async def test_one_that_stalls_is_unreachable_in_time(said: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(said)
        await reader.read()

    async with server(script) as url:
        client = PollClient(url)
        with pytest.raises(Unreachable, match=r"no answer in 0\.1 s"):
            await client.get("/health", 0.1)
        await client.close()


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsome"])
async def test_garbage_and_a_cut_reply_are_unreachable(said: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(said)

    async with server(script) as url:
        client = PollClient(url)
        with pytest.raises(Unreachable):
            await client.get("/health", 20.0)
        await client.close()


async def test_a_kept_connection_that_was_closed_is_opened_again() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(OK)
        await reader.read(1)  # the next request, unanswered

    async with server(script) as url:
        client = PollClient(url)
        for _ in range(3):
            assert (await client.get("/health", 20.0)).body == b"ok"
        await client.close()


async def test_nobody_there() -> None:
    async with server(lambda r, w: asyncio.sleep(0)) as url:
        pass
    client = PollClient(url)
    with pytest.raises(Unreachable, match="cannot connect"):
        await client.get("/health", 20.0)
    await client.close()


async def test_the_url_says_which_client() -> None:
    for url, kind in (("unix:/run/agent.sock", HttpClient), ("https://gpu-7:9100", PollClient)):
        client = control_client(url)
        assert isinstance(client, kind)
        await client.close()
