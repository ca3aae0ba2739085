"""Who may administrate a gateway that has no admin key, and what becomes of odd questions."""

from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from joulegate.settings.gateway import Gateway
from router.app import build_app, from_here
from router.reload import Reloader
from router.runtime import Runtime


def asks(host: str = "127.0.0.1:8080", client: str = "127.0.0.1", **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(
        {
            "type": "http",
            "scheme": "http",
            "path": "/admin/fleet",
            "query_string": b"",
            "server": ("127.0.0.1", 8080),
            "client": (client, 1234),
            "headers": [(b"host", host.encode()), *pairs],
        }
    )


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080"])
def test_this_machine_by_any_of_its_names(host: str) -> None:
    assert from_here(asks(host))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(asks(client="10.0.0.7"), id="another machine"),
        pytest.param(asks("evil.example"), id="a name made to mean this machine"),
        pytest.param(asks("127.0.0.1.evil.example"), id="a name that begins like it"),
        pytest.param(asks(origin="http://evil.example"), id="a page in a browser here"),
        pytest.param(asks(x_forwarded_for="10.0.0.7"), id="a proxy here"),
        pytest.param(asks(x_forwarded_host="x"), id="a proxy that names the host"),
        pytest.param(asks(forwarded="for=10.0.0.7"), id="a proxy of RFC 7239"),
        pytest.param(asks(cf_connecting_ip="10.0.0.7"), id="a tunnel"),
    ],
)
def test_nobody_else(request_: Request) -> None:
    assert not from_here(request_)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b'{"pool":NaN}', 422, id="no JSON, but read as such"),
        pytest.param(b'{"pool":1e999}', 422, id="no finite number"),
        pytest.param(b'{"pool":"\\ud800"}', 404, id="half a pair"),
        pytest.param(b'{"pool":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, id="deep"),
        pytest.param(b"\xff", 400, id="no text"),
    ],
)
def test_an_odd_question_is_refused_not_a_fault(body: bytes, status: int) -> None:
    pools = [{"name": "p", "instances": [{"name": "i", "url": "http://127.0.0.1:9"}]}]
    runtime = Runtime(Gateway.model_validate({"version": 1, "models": [{"name": "m", "pools": pools}]}))
    app = build_app(runtime, Reloader(Path("none.yaml"), runtime, []))
    here = TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1234))
    got = here.post("/admin/pause", content=body, headers={"content-type": "application/json"})
    assert got.status_code == status
    assert got.json()["detail"]
