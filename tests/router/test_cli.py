"""Commands that talk to a gateway, when there is none where they ask."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from joulegate.cli import COMMANDS, run


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


@pytest.fixture
def stranger() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_server_is_no_gateway(stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--url", stranger], COMMANDS) == 2
    assert "is not a gateway's answer\n  help: is it the gateway's port?" in capsys.readouterr().err


def test_a_refusal_is_given_in_the_gateways_words(stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["drain", "x", "--url", stranger], COMMANDS) == 1
    assert capsys.readouterr().err == "error: no instance is called 'x'\n"
    assert run(["reload", "--url", stranger], COMMANDS) == 1
    assert "/admin/reload answered 404: <html>not here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        pytest.param("localhost:8080", 2, "localhost:8080 is no URL of a gateway", id="no scheme"),
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
