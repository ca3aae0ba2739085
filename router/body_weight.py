"""Pure: how much memory a JSON body would take as Python objects, before it is parsed.

A request may take ten times its size at most. Text takes its own size (four times that with an emoji in
it), but `[{},{},{}` takes thirty times. Token ids, long lists of numbers that are common, are counted and
taken out; what is left is estimated from its punctuation by what CPython 3.11 gives an object of a kind.
"""

import re
from itertools import islice

SMALL = 64 * 1024  # bytes: whatever is in it, it is not much
MOST = 7.5  # bytes of objects and of the body for each of it; its way to the engine comes after
IDS = re.compile(rb"\[[\d,\s]{64,}+\]")
STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # the last one may lack its end
NO_MARKS = bytes(byte for byte in range(256) if byte not in b'{[,:"\\')
LONG = 64  # bytes of a string that is looked into
LOOKS = 20_000  # strings looked at
STR, DICT, LIST, NUMBER, ITEM, KEY, LONELY_KEY = 64, 80, 72, 32, 17, 24, 100  # bytes


def weighed(body: bytes | bytearray) -> tuple[bytes | bytearray, int] | None:
    """What to parse in its place, and how many token ids were taken out of it; None: it is too heavy."""
    size = len(body)
    if size <= SMALL or size + _weight(body.translate(None, NO_MARKS)) <= MOST * size:
        return body, 0
    ids = 0

    def noted(found: re.Match[bytes]) -> bytes:
        nonlocal ids
        ids += found[0].count(b",")
        return b"[0]"

    slim = IDS.sub(noted, body)
    return (slim, ids) if size + _weight(_marks(slim)) <= MOST * size else None


def _marks(body: bytes) -> bytes:
    """The punctuation of `body`, but for what is inside long strings."""
    found, at = [], 0
    for string in islice(STRING.finditer(body), LOOKS):
        start, end = string.span()
        if end - start > LONG:
            found.append(body[at : start + 1].translate(None, NO_MARKS))
            at = end - 1
    found.append(body[at:].translate(None, NO_MARKS))
    return b"".join(found)


def _weight(marks: bytes | bytearray) -> float:
    """Bytes that the objects take whose punctuation this is, without the text in them."""
    count = marks.count
    dicts, lists, items, keys = count(b"{"), count(b"["), count(b","), count(b":")
    strings = max(0, count(b'"') - count(b'\\"')) / 2
    numbers = max(0.0, items - max(0.0, strings - keys))
    lonely = keys if keys > 8 * dicts else 0  # large dictionaries: keys that nobody shares, and room to grow
    objects = DICT * dicts + LIST * lists + ITEM * items + KEY * keys + LONELY_KEY * lonely
    return objects + STR * strings + NUMBER * numbers
