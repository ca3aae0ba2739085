"""Pure: joules in the usage of an answer, for who asked for them. Nobody else's bytes change."""

import orjson

from router.openai_api import value_spans


def with_energy(body: bytes, joules: float | None, emulated: bool) -> bytes:
    """A JSON answer, or one event of a stream, with `usage.joulegate`; unchanged where it has no usage.

    `joules` None: nobody meters the instance's GPUs.
    """
    spans = value_spans(body, b'"usage"')
    if len(spans) != 1:
        return body
    start, end = spans[0]
    usage = body[start:end].rstrip()
    if not (usage.startswith(b"{") and usage.endswith(b"}")):
        return body
    how = "not measured" if joules is None else "simulated" if emulated else "attributed"
    said = {"energy_joules": None if joules is None else round(joules, 3), "energy_source": how}
    comma = b"" if usage[1:-1].strip() == b"" else b","
    return b'%b%b%b"joulegate":%b}%b' % (body[:start], usage[:-1], comma, orjson.dumps(said), body[end:])
