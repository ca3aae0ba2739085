"""The agent's HTTP face, as a client meets it."""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.agent_host import AgentHost
from benchmarks.lease_holder import UnixConnection
from gpu_agent.edge import MAX_CONNECTIONS
from joulegate.wire import BoostReply, GpuList, LeaseRefused, SyncReply, WireError

ADMIN, READER, PARTIAL = "s3cret-admin", "s3cret-reader", "s3cret-partial"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentHost]:
    folder: Path = tmp_path_factory.mktemp("node")
    tokens = [
        {"name": "admin", "token": ADMIN, "scopes": ["read", "boost", "clocks", "caps"]},
        {"name": "reader", "token": READER, "scopes": ["read"]},
        {"name": "partial", "token": PARTIAL, "gpus": ["GPU-0"]},
    ]
    host = AgentHost(
        folder, 2, {"listen": {"unix": str(folder / "agent.sock"), "tokens": tokens}, "restore_jitter_ms": 0}
    )
    host.start_agent("--with-watchdog")
    host.wait_for(lambda: "agent ready" in host.logged(), "ready line")
    yield host
    host.agent.terminate() if host.agent else None
    host.stop()


def ask(
    host: AgentHost,
    path: str,
    body: object = None,
    token: str = ADMIN,
    content_type: str = "application/json",
) -> tuple[int, bytes]:
    connection = UnixConnection(str(host.folder / "agent.sock"), 10.0)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    if body is not None:
        headers["content-type"] = content_type
    try:
        connection.request(
            "GET" if body is None else "POST", path, data if body is not None else None, headers
        )
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def test_the_inventory_names_limits_and_capabilities(host: AgentHost) -> None:
    status, body = ask(host, "/v1/gpus")
    gpus = GpuList.model_validate_json(body)
    assert status == 200
    assert [info.uuid for info in gpus.infos] == ["GPU-0", "GPU-1"]
    assert all(info.writable and info.clocks_mhz[-1] == 1980 for info in gpus.infos)
    assert gpus.gpus[0].clock_mhz == 1980
    assert gpus.gpus[0].power_w == 70.0


def test_sync_answers_with_the_lease_and_every_gpu(host: AgentHost) -> None:
    status, body = ask(host, "/v1/sync", {"holder": "a", "ttl_s": 1.0, "targets": {"GPU-0": 900}})
    reply = SyncReply.model_validate_json(body)
    assert status == 200
    assert 0.0 < reply.expires_in_s <= 1.0
    assert [gpu.ceiling_mhz for gpu in reply.gpus] == [900, None]
    status, body = ask(host, "/v1/sync", {"holder": "b"})
    assert status == 409
    assert LeaseRefused.model_validate_json(body).holder == "a"
    host.wait_for(lambda: host.ceilings() == [None, None], "restore")


@pytest.mark.parametrize(
    ("path", "body", "token", "expected"),
    [
        pytest.param("/v1/gpus", None, "", 401, id="no token"),
        pytest.param("/v1/gpus", None, "wrong", 401, id="a wrong token"),
        pytest.param("/metrics", None, "", 401, id="metrics want one too"),
        pytest.param("/healthz", None, "", 200, id="health does not"),
        pytest.param("/v1/gpus", None, READER, 200, id="a reader reads"),
        pytest.param("/v1/sync", {"holder": "r"}, READER, 403, id="and does not set clocks"),
        pytest.param("/v1/boost", {"holder": "r", "floors": {"GPU-0": 900}}, READER, 403, id="nor boost"),
        pytest.param("/v1/release", {"holder": "r"}, READER, 403, id="nor release"),
        pytest.param(
            "/v1/sync", {"holder": "p", "targets": {"GPU-1": 900}}, PARTIAL, 403, id="another's GPU"
        ),
        pytest.param("/v1/boost", {"holder": "p", "floors": {"GPU-0": 900}}, PARTIAL, 200, id="its own"),
        pytest.param("/v1/release", {"holder": "p"}, PARTIAL, 403, id="release wants all of them"),
        pytest.param(
            "/v1/caps", {"holder": "p", "epoch": 1, "caps": {}}, PARTIAL, 403, id="caps need their scope"
        ),
        pytest.param(
            "/v1/caps", {"holder": "a", "epoch": 1, "caps": {"GPU-0": 500.0}}, ADMIN, 200, id="set a cap"
        ),
        pytest.param("/v1/caps", {"holder": "a", "epoch": 0, "caps": {}}, ADMIN, 409, id="an old budget"),
        pytest.param("/v1/sync", {"holder": "a", "targets": {"GPU-9": 900}}, ADMIN, 400, id="unknown GPU"),
        pytest.param("/v1/sync", {"holder": "a", "ttl_s": 60.0}, ADMIN, 400, id="too long a lease"),
        pytest.param("/v1/sync", {"holder": "a", "ttl_s": 0.5}, ADMIN, 400, id="too short a lease"),
        pytest.param("/v1/sync", {"holder": "a", "speed": 9}, ADMIN, 400, id="unknown field"),
        pytest.param("/v1/sync", b"{", ADMIN, 400, id="not JSON"),
        pytest.param("/v1/sync", b"", ADMIN, 400, id="an empty body"),
        pytest.param("/v1/sync", b" " * 70_000, ADMIN, 413, id="too large"),
        pytest.param("/v1/telemetry?hz=fast", None, ADMIN, 400, id="no such rate"),
        pytest.param("/v1/clocks", None, ADMIN, 404, id="no such route"),
    ],
)
def test_statuses(host: AgentHost, path: str, body: object, token: str, expected: int) -> None:
    status, answer = ask(host, path, body, token)
    assert status == expected, answer
    if expected >= 400:
        assert WireError.model_validate_json(answer).error


def test_a_boost_answers_with_every_gpu(host: AgentHost) -> None:
    status, body = ask(host, "/v1/boost", {"holder": "b", "floors": {"GPU-1": 900}})
    assert status == 200
    assert [gpu.uuid for gpu in BoostReply.model_validate_json(body).gpus] == ["GPU-0", "GPU-1"]


def test_requests_sent_ahead_are_answered_in_turn(host: AgentHost) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20.0)
        client.connect(str(host.folder / "agent.sock"))
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 2 + b"GET /nothing HTTP/1.0\r\n\r\n")
        received = b""
        while chunk := client.recv(4096):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.rpartition(b"HTTP/1.1 ")[2].startswith(b"401")  # and closed, as HTTP/1.0 means


def test_a_client_that_takes_no_answers_is_dropped(host: AgentHost) -> None:
    many = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 100_000
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20.0)
        client.connect(str(host.folder / "agent.sock"))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            client.sendall(many)
    assert ask(host, "/healthz")[0] == 200


def test_a_web_page_cannot_post_without_asking(host: AgentHost) -> None:
    status, _ = ask(host, "/v1/sync", {"holder": "page"}, content_type="text/plain")
    assert status == 415


def test_telemetry_streams_until_the_client_leaves(host: AgentHost) -> None:
    connection = UnixConnection(str(host.folder / "agent.sock"), 10.0)
    connection.request("GET", "/v1/telemetry?hz=20", headers={"authorization": f"Bearer {READER}"})
    reply = connection.getresponse()
    assert reply.headers["content-type"] == "text/event-stream"
    events = [_event(reply) for _ in range(3)]
    times = [event.gpus[0].observed_at_s for event in events]
    assert times == sorted(set(times))
    connection.close()


def _event(reply: http.client.HTTPResponse) -> GpuList:
    line = reply.readline()
    while not line.startswith(b"data: "):
        line = reply.readline()
    return GpuList.model_validate_json(line.removeprefix(b"data: "))


def test_metrics_say_what_was_done(host: AgentHost) -> None:
    status, body = ask(host, "/metrics", token=READER)
    text = body.decode()
    assert status == 200
    assert 'joulegate_gpu_power_watts{gpu="GPU-0"} 70.0' in text
    assert 'joulegate_gpu_energy_joules_total{gpu="GPU-1",source="counter"}' in text
    assert "joulegate_lease_expirations_total" in text


def test_secrets_are_not_logged(host: AgentHost) -> None:
    assert "s3cret" not in host.logged()


def test_the_socket_has_its_mode(host: AgentHost) -> None:
    assert (host.folder / "agent.sock").stat().st_mode & 0o777 == 0o660
    assert (host.folder / "watchdog.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        pytest.param(b"", b"HTTP/1.1 408", id="says nothing"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nhost: a\r\n", b"HTTP/1.1 408", id="half a head"),
        pytest.param(b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 20_000, b"HTTP/1.1 431", id="a long head"),
        pytest.param(b"\x16\x03\x01", b"HTTP/1.1 400", id="no HTTP"),
    ],
)
def test_a_client_that_never_asks_is_sent_away(host: AgentHost, sent: bytes, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20.0)
        client.connect(str(host.folder / "agent.sock"))
        client.sendall(sent)
        received = client.recv(1000)
        while received and len(received) < len(answer):
            received += client.recv(1000)
        assert received.startswith(answer)


def test_a_connection_that_is_used_again_is_kept(host: AgentHost) -> None:
    connection = UnixConnection(str(host.folder / "agent.sock"), 10.0)
    for _ in range(3):
        connection.request("GET", "/healthz")
        assert connection.getresponse().read() == b"ok\n"
    connection.close()


def test_a_crowd_of_connections_is_turned_away_and_the_next_guest_served(host: AgentHost) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(MAX_CONNECTIONS + 5):
            guest = crowd.enter_context(socket.socket(socket.AF_UNIX))
            guest.settimeout(20.0)
            guest.connect(str(host.folder / "agent.sock"))
        assert guest.recv(1) == b""
    host.wait_for(lambda: _answers(host), "an agent that answers")


def _answers(host: AgentHost) -> bool:
    try:
        return ask(host, "/healthz")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def test_a_second_agent_does_not_take_the_socket_over(host: AgentHost, tmp_path: Path) -> None:
    """One that only watches makes no claim on the state folder."""
    document = json.loads((host.folder / "agent.yaml").read_text())
    (tmp_path / "agent.yaml").write_text(json.dumps(document | {"allow_writes": False}))
    command = [sys.executable, "-m", "joulegate", "agent", "-c", str(tmp_path / "agent.yaml")]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 2
    assert b"another agent listens" in result.stderr
    assert ask(host, "/v1/gpus")[0] == 200


def test_a_half_sent_request_does_not_hold_up_others(host: AgentHost) -> None:
    with socket.socket(socket.AF_UNIX) as slow:
        slow.connect(str(host.folder / "agent.sock"))
        slow.sendall(
            b"POST /v1/sync HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer " + ADMIN.encode() + b"\r\ncontent-length: 100\r\n\r\n{"
        )
        assert ask(host, "/v1/gpus")[0] == 200
        slow.settimeout(15.0)
        assert slow.recv(64).startswith(b"HTTP/1.1 408")
