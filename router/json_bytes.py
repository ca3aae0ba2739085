"""Pure: values at the top level of a JSON object, found and replaced in its bytes: it is not parsed."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from math import inf

import orjson

MAX_VALUE = 64 * 1024  # bytes of a container whose end is looked for
TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
SCALAR = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[^\s,}\]]+', re.DOTALL)
STRINGS = re.compile(rb'"[^"]*+"')  # where no quote is escaped
COLON = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")
NO_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'{}[]"')
OPENING = frozenset({b"{", b"["})
CLOSING = frozenset({b"}", b"]"})
MOST = 2000  # finds, some ten microseconds each
Bytes = bytes | bytearray


class TooMany(Exception):
    """More than anybody needs, and than is looked through."""


def renamed(body: bytearray, model: str) -> bytearray:
    """The JSON body asking for `model`, as often as it names one: of several engines take the last."""
    name, at = orjson.dumps(model), 0
    pieces: list[Bytes] = []
    for start, end in value_spans(body, "model"):
        if body[start : start + 1] == b'"':
            pieces += body[at:start], name
            at = end
    return bytearray().join([*pieces, body[at:]])


def value_spans(body: Bytes, name: str) -> list[tuple[int, int]]:
    """Where the values of the key `name` lie at the top level of a JSON object known to be valid."""
    return [(start, end) for _, start, end in _found(body, (name,), any_case=False)]


def members(body: Bytes, names: Sequence[str]) -> Iterator[tuple[str, Bytes]]:
    """Keys at the top level of a JSON object like one of `names`, in any case; the text of their values.

    Raises TooMany for a body that is made of such keys.
    """
    for key, start, end in _found(body, names, any_case=True, most=MOST):
        yield str(orjson.loads(key)), body[start:end]


def _found(
    body: Bytes, names: Sequence[str], any_case: bool, most: float = inf
) -> Iterator[tuple[Bytes, int, int]]:
    """Each key with its quotes, and where its value lies. `most`: finds, at any depth.

    A key is found however its letters are escaped. A container of more than MAX_VALUE bytes counts as empty.
    What lies between two finds is gone through by the bytes' own methods: bodies have millions of tokens.
    """
    plain = body
    if b"\\" in body:  # then every quote that is left begins or ends a string
        plain = body.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    keys = _keys(tuple(names), any_case, b"\\u00" in plain)
    depth = at = finds = 0
    while (found := keys.search(plain, at)) is not None:
        finds += 1
        if finds > most:
            raise TooMany
        depth += _deeper(plain[at : found.start()])
        at = found.end()
        colon = COLON.match(plain, at)
        if depth == 1 and colon is not None:
            yield found[0], colon.end(), _end(plain, colon.end())


@cache
def _keys(names: tuple[str, ...], any_case: bool, escapes: bool) -> re.Pattern[bytes]:
    """A key of one of these names; with `escapes`, whichever of its letters are escaped."""
    case = "i" if any_case else ""
    spelled = ["".join(_letter(one, any_case) for one in name) if escapes else name for name in names]
    return re.compile(f'"(?{case}:{"|".join(spelled)})"'.encode())


def _letter(letter: str, any_case: bool) -> str:
    """It, or its escape, as a pattern."""
    codes = {f"{ord(one):02x}" for one in (letter, letter.upper() if any_case else letter)}
    return rf"(?:{letter}|(?-i:\\u00)(?i:{'|'.join(sorted(codes))}))"


def _deeper(part: Bytes) -> int:
    """How many more containers are open at the end of `part`, which begins and ends outside of strings."""
    marks = STRINGS.sub(b"", part.translate(None, NO_STRUCTURE).replace(b'""', b""))
    return marks.count(b"{") + marks.count(b"[") - marks.count(b"}") - marks.count(b"]")


def _end(plain: Bytes, start: int) -> int:
    """Where the value ends that begins there."""
    if bytes(plain[start : start + 1]) not in OPENING:
        scalar = SCALAR.match(plain, start)
        return scalar.end() if scalar else start
    depth = 0
    for token in TOKENS.finditer(plain, start):
        if token.end() > start + MAX_VALUE:
            break
        depth += (token[0] in OPENING) - (token[0] in CLOSING)
        if not depth:
            return token.end()
    return start
