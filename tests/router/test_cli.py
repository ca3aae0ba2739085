"""Commands that talk to a gateway, when there is none where they ask."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from joulegate.cli import COMMANDS, run

# what each command looks for, and nothing of what it then reads
NEARLY = b'{"models": 1, "refused": "", "pools": 1, "lifting": 1, "draining": 1}'


class Stranger(BaseHTTPRequestHandler):
    """A server of something else."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>It works!</html>")

    def do_POST(self) -> None:
        """As a gateway refuses; elsewhere as anybody does."""
        self.send_response(404)
        self.end_headers()
        gateway = self.path == "/admin/drain"
        self.wfile.write(
            b'{"detail": "no instance is called \'x\'"}' if gateway else b"<html>not here</html>"
        )

    def log_message(self, *_: object) -> None:
        """Nothing of it on stderr."""


@contextlib.contextmanager
def served(handler: type[Stranger]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def stranger() -> Iterator[str]:
    with served(Stranger) as url:
        yield url


def test_another_server_is_no_gateway(stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", stranger], COMMANDS) == 2
    assert "is not a gateway's answer\n  help: is it the gateway's port?" in capsys.readouterr().err


def test_a_refusal_is_given_in_the_gateways_words(stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", "x", "--url", stranger], COMMANDS) == 1
    assert capsys.readouterr().err == "error: no instance is called 'x'\n"
    assert run(["reload", "--url", stranger], COMMANDS) == 1
    assert "/admin/reload answered 404: <html>not here" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "reload", "pause", "uncap", "drain x"])
@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b"[" * 5000, NEARLY])
def test_json_of_another_server_is_no_gateways_either(
    command: str, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(Stranger):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with served(Other) as url:
        assert run([*command.split(), "--url", url], COMMANDS) == 2
    assert "is not a gateway's answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "said"),
    [
        pytest.param(b"\xff", "is not text", id="no text"),
        pytest.param("schl\u00fcssel".encode(), "a key that no HTTP header can carry", id="no ASCII"),
        pytest.param(b"one\ntwo\n", "a key that no HTTP header can carry", id="two lines"),
    ],
)
def test_a_file_that_holds_no_key_is_refused(
    key: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "key").write_bytes(key)
    assert run(["status", "--admin-key-file", str(tmp_path / "key")], COMMANDS) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        pytest.param("localhost:8080", 2, "expected http://host:port", id="no scheme"),
        pytest.param("http://127.0.0.1:99999", 2, "not a URL: Port out of range", id="no such port"),
        pytest.param("http://[::1", 2, "not a URL: Invalid IPv6 URL", id="half an address"),
        pytest.param("http://127.0.0.1:1/\n", 2, "not a URL: 'http://127.0.0.1:1/\\n'", id="a line's end"),
        pytest.param("http://127.0.0.1:9", 1, "no gateway answers", id="nobody listens"),
    ],
)
def test_where_nobody_answers_it_is_said_what_to_do(
    url: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", "--url", url], COMMANDS) == status
    error = capsys.readouterr().err
    assert said in error
    assert "help:" in error
