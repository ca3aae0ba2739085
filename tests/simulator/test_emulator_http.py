import asyncio
import json
from urllib.parse import urlsplit

import httpx
import pytest

from joulegate.arrivals import Arrival
from simulator.loadgen import Sender, Target, finish, play
from simulator.replay_report import Engine
from tests.simulator.conftest import MODEL, RunningFleet

HEALTH = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"


async def exchange(url: str, sent: bytes, until: bytes = b"") -> bytes:
    """Everything that comes back until the server closes, or until `until` has come."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(sent)
    received = b""
    while not until or until not in received:
        part = await asyncio.wait_for(reader.read(65536), 10)
        received += part
        if not part:
            break
    writer.close()
    await writer.wait_closed()
    return received


def post(body: dict[str, object], *headers: bytes) -> bytes:
    raw = json.dumps(body).encode()
    lines = [b"POST /v1/chat/completions HTTP/1.1", b"host: x", b"content-type: application/json", *headers]
    return b"\r\n".join((*lines, b"content-length: %d" % len(raw), b"", raw))


def body(tokens: int, stream: bool = False) -> dict[str, object]:
    messages = [{"role": "user", "content": "hello"}]
    return {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": stream}


async def test_requests_sent_at_once_are_answered_in_order(fleet: RunningFleet) -> None:
    sent = post(body(3, stream=True)) + HEALTH + post(body(2), b"connection: close")
    received = await exchange(fleet.urls["large"], sent)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.index(b"data: [DONE]") < received.index(b"content-length: 0")
    assert received.rindex(b'"completion_tokens":2') > received.index(b"content-length: 0")


async def test_connection_close_closes(fleet: RunningFleet) -> None:
    received = await exchange(
        fleet.urls["large"], HEALTH.replace(b"host: x", b"host: x\r\nconnection: close")
    )
    assert received.startswith(b"HTTP/1.1 200")


async def test_what_is_no_http_gets_400(fleet: RunningFleet) -> None:
    assert (await exchange(fleet.urls["large"], b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def test_a_client_that_asks_first_is_told_to_continue(fleet: RunningFleet) -> None:
    received = await exchange(
        fleet.urls["large"], post(body(1), b"expect: 100-continue", b"connection: close")
    )
    assert received.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")


async def test_a_chunked_body_is_read(fleet: RunningFleet) -> None:
    raw = json.dumps(body(2)).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    sent = head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(raw), raw)
    assert b'"completion_tokens":2' in await exchange(fleet.urls["large"], sent)


@pytest.mark.timeout(60)
async def test_under_load_with_clients_that_leave_the_rest_is_exact(fleet: RunningFleet) -> None:
    url = fleet.urls["large"]
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        before = (await http.get("/emulator/stats")).json()["instances"][0]
        sender = Sender(Target(url, MODEL, Engine.EMULATED))
        arrivals = [Arrival(0.005 * i, 20 + 37 * i % 700, 1 + 13 * i % 120) for i in range(150)]
        leavers = [exchange(url, post(body(4000, stream=True)), until=b'" the"') for _ in range(40)]
        leaving = asyncio.gather(*leavers)
        await play(arrivals, [sender], lambda elapsed: None)
        await finish([sender], 30.0, lambda elapsed: None)
        await leaving
        after = (await http.get("/emulator/stats")).json()["instances"][0]
        page = (await http.get("/metrics")).text
    assert all(answer.exact and not answer.error for answer in sender.tally.answers)
    assert len({answer.id for answer in sender.tally.answers}) == 150
    assert after["aborted"] - before["aborted"] == 40
    assert after["requests"] - before["requests"] == 150
    assert (after["running"], after["waiting"]) == (0, 0)
    assert f'vllm:kv_cache_usage_perc{{engine="0",model_name="{MODEL}"}} 0.0' in page
