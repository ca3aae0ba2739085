"""What `scripts/bench stages` times is what a request meets."""

from benchmarks.stages import least, stages
from router.dialects import Usage
from router.intake import Call, Message


def test_every_stage_does_its_work() -> None:
    done = {name: action() for name, action in stages(instances=2)}
    call = done["parse and understand"]
    assert isinstance(call, Call)
    assert call.request.generative
    assert call.request.query.model == "bench-model"
    message = done["the message to the instance"]
    assert isinstance(message, Message)
    assert bytes(message.pieces[-1]) == bytes(call.body)
    usage = done["usage of an answer"]
    assert isinstance(usage, Usage)
    assert (usage.prompt, usage.completion) == (256, 16)
    event = done["one streamed event"]
    assert isinstance(event, bytes)
    assert event.startswith(b"data: {")
    assert event.endswith(b"\n\n")


def test_the_least_time_of_a_call_is_microseconds() -> None:
    assert 0.0 < least(lambda: None) < least(lambda: sum(range(2000)))
