"""Which unknown fields a message may carry."""

import orjson
import pytest
from pydantic import ValidationError

from joulegate.wire import CapsReply, SyncRequest, WireError


def test_an_answer_of_a_newer_agent_is_read_without_what_is_new() -> None:
    body = {"epoch": 3, "caps": {"GPU-1": {"cap_w": 300.0, "wanted_w": 300.0, "news": 1}}, "news": [1]}

    reply = CapsReply.model_validate_json(orjson.dumps(body))

    assert (reply.epoch, reply.caps["GPU-1"].cap_w) == (3, 300.0)
    assert WireError.model_validate_json(b'{"error": "no", "code": 7}').error == "no"


def test_a_wish_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValidationError, match="floor_mhz"):
        SyncRequest.model_validate_json(b'{"holder": "a", "floor_mhz": 900}')
