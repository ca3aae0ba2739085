"""A client that leaves stops the engine's work."""

import openai
import pytest

from tests.vllm.servers import MODEL, Server, eventually, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
LONG = 1900  # tokens: seconds of work, so that an abort is seen in what was not generated
FORCED = {"min_tokens": LONG, "ignore_eos": True}


def running(engines: tuple[Server, Server]) -> float:
    return total(engines, "vllm:num_requests_running") + total(engines, "vllm:num_requests_waiting")


def generated(engines: tuple[Server, Server]) -> float:
    return total(engines, "vllm:generation_tokens_total")


def test_leaving_a_stream_aborts_it(client: openai.OpenAI, engines: tuple[Server, Server]) -> None:
    before = generated(engines)
    with client.completions.create(
        model=MODEL, prompt="a", max_tokens=LONG, stream=True, extra_body=FORCED
    ) as stream:
        next(stream)
        assert running(engines) == 1
    assert eventually(lambda: running(engines) == 0)
    assert generated(engines) - before < LONG


def test_leaving_before_the_answer_aborts_it(client: openai.OpenAI, engines: tuple[Server, Server]) -> None:
    before = generated(engines)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.5).completions.create(
            model=MODEL, prompt="a", max_tokens=LONG, extra_body=FORCED
        )
    assert eventually(lambda: running(engines) == 0)
    assert 0 < generated(engines) - before < LONG
