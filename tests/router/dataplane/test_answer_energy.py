"""Who asks for the energy of an answer gets it in `usage`; nobody else's bytes change."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.answer_energy import with_energy
from router.ports import Ending
from tests.fakes.edge import edge, post, unchunked
from tests.fakes.engine import (
    DONE,
    LAST_CHUNK,
    ROLE,
    STREAM_HEAD,
    USAGE,
    FakeEngine,
    answer,
    chunk,
    event,
    says,
)
from tests.fakes.gate import FakeGate

ASK = b'{"model":"m","messages":[{"role":"user","content":"hello"}]}'
ASK_USAGE = b'{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[]}'
ASK_STREAM = b'{"model":"m","stream":true,"messages":[]}'
BODY = b'{"id":"x", "choices":[{"text":"\\"usage\\":{"}], "usage":{"prompt_tokens":1,"completion_tokens":2 }}'
ENERGY = b"x-joulegate-energy: true\r\n"


async def said(ask: bytes, sent: bytes, headers: bytes, joules: float | None) -> bytes:
    """The body that the client gets."""
    async with FakeEngine(says(sent)) as engine:
        gate = FakeGate(engine.endpoint())
        gate.joules = joules
        async with edge(gate) as it:
            got = await it.raw(post(ask, headers=headers))
            await it.settled()
        assert gate.reports[0].ending is Ending.OK
        assert gate.reports[0].completion_tokens == 2
        return got.partition(b"\r\n\r\n")[2]


async def test_an_answer_says_what_it_took_and_keeps_every_other_byte() -> None:
    got = await said(ASK, answer(BODY), ENERGY, 12.34567)
    assert got.replace(b',"joulegate":{"energy_joules":12.346,"energy_source":"attributed"}', b"") == BODY


async def test_nothing_changes_for_who_did_not_ask() -> None:
    assert await said(ASK, answer(BODY), b"", 12.3) == BODY


async def test_where_nobody_meters_it_says_so() -> None:
    got = orjson.loads(await said(ASK, answer(BODY), ENERGY, None))
    assert got["usage"]["joulegate"] == {"energy_joules": None, "energy_source": "not measured"}


async def test_a_stream_says_it_in_the_usage_chunk_that_was_asked_for() -> None:
    sent = STREAM_HEAD + b"".join(map(chunk, [ROLE, event("a"), event("b"), USAGE, DONE])) + LAST_CHUNK
    got = unchunked(await said(ASK_USAGE, sent, ENERGY, 3.0))
    before, _, after = got.partition(b',"joulegate":{"energy_joules":3.0,"energy_source":"attributed"}')
    assert before + after == ROLE + event("a") + event("b") + USAGE + DONE
    assert unchunked(await said(ASK_STREAM, sent, ENERGY, 3.0)) == ROLE + event("a") + event("b") + DONE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"usage":null}',
        b'{"usage":3}',
        b'{"usage":{',
        b"[1]",
        b'{"x":{"usage":{}}}',
    ],
)
def test_what_has_no_usage_of_its_own_stays_as_it_is(body: bytes) -> None:
    assert with_energy(body, 1.0, emulated=False) == body


values = st.recursive(
    st.none() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values), st.floats(0, 1e9))
def test_only_usage_gets_one_key_more(
    answered: dict[str, object], usage: dict[str, object], joules: float
) -> None:
    usage.pop("joulegate", None)
    body = orjson.dumps({**answered, "usage": usage})
    found = orjson.loads(with_energy(body, joules, emulated=True))
    assert found["usage"].pop("joulegate") == {
        "energy_joules": round(joules, 3),
        "energy_source": "simulated",
    }
    assert found == orjson.loads(body)
