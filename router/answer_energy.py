"""Pure: joules in the usage of an answer, for who asked for them. Nobody else's bytes change."""

import re

import orjson

from router.json_bytes import CLOSING, OPENING, TOKENS

USAGE = re.compile(rb'"usage"\s*:\s*\{')


def with_energy(body: bytes, joules: float | None, emulated: bool) -> bytes:
    """A JSON answer, or one event of a stream, with `usage.joulegate`; unchanged where it has no usage.

    `joules` None: nobody meters the instance's GPUs. Only what follows the last `"usage":{` is looked at:
    engines write it near the end.
    """
    end = _end(body)
    if end is None:
        return body
    how = "not measured" if joules is None else "simulated" if emulated else "attributed"
    said = {"energy_joules": None if joules is None else round(joules, 3), "energy_source": how}
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b'%b%b"joulegate":%b%b' % (body[:end], comma, orjson.dumps(said), body[end:])


def _end(body: bytes) -> int | None:
    """Where the last `usage` of the top level closes; None: there is none."""
    found = list(USAGE.finditer(body))  # never inside a string: its quotes would be escaped
    if not found:
        return None
    end, depth = None, 1
    for token in TOKENS.finditer(body, found[-1].end() - 1):
        if token[0] in OPENING:
            depth += 1
        elif token[0] in CLOSING:
            depth -= 1
            if depth == 1 and end is None:
                end = token.start()
    return end if depth == 0 else None
