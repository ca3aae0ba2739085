"""Logs: one line an event, readable by machines, without secrets."""

import io
import json
import logging
from typing import Literal

import pytest

from joulegate.logs import logging_to

log = logging.getLogger("joulegate.test")


def written(style: str, level: str = "info") -> str:
    stream = io.StringIO()
    with logging_to("json" if style == "json" else "text", level, stream):
        log.debug("detail")
        log.info("pool full", extra={"request_id": "req-1", "waiting": 3, "api_key": "sk-1"})
        try:
            raise ValueError("boom")
        except ValueError:
            log.exception("failed", extra={"url": "redis://:sk-2@host/0", "headers": {"token": "sk-3"}})
    log.warning("after the end")
    return stream.getvalue()


def test_json_has_an_object_a_line() -> None:
    first, second = map(json.loads, written("json").splitlines())
    assert (first["level"], first["message"], first["request_id"]) == ("info", "pool full", "req-1")
    assert first["waiting"] == 3
    assert "ValueError: boom" in second["traceback"]
    assert second["logger"] == "joulegate.test"


def test_text_is_for_people() -> None:
    lines = written("text").splitlines()
    assert "info    pool full  request_id=req-1  waiting=3" in lines[0]
    assert "error   failed  url=redis://*****@host/0" in lines[1]
    assert lines[-1] == "ValueError: boom"


@pytest.mark.parametrize("style", ["json", "text"])
def test_no_secret_is_written(style: str) -> None:
    assert "sk-" not in written(style)


def test_the_level_is_kept_to() -> None:
    assert "detail" in written("json", "debug")
    assert "pool full" not in written("json", "error")


@pytest.mark.parametrize("value", ["half a pair: \ud800", 10**30])
@pytest.mark.parametrize("style", ["json", "text"])
def test_whatever_is_logged_is_a_line(style: Literal["json", "text"], value: object) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")  # as stderr is
    with logging_to(style, "info", stream):
        log.info("odd", extra={"value": value})
    stream.seek(0)
    assert len(stream.readlines()) == 1
