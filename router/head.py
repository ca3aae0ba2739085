"""Pure: heads of messages: what a request head must satisfy, which paths pass, what is forwarded.

Stricter than RFC 9112 where servers are known to disagree: a request that two parsers could read in two
ways is refused, never repaired (request smuggling).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from router.errors import BadRequest, HeadTooLarge, MethodNotAllowed, NoSuchRoute, UnsupportedVersion

Header = tuple[bytes, bytes]
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HOST = re.compile(rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
# what a CGI-style server takes for the real field: nobody needs these, only attacks do
ALIASES = frozenset({b"content_length", b"transfer_encoding"})
ONCE = (b"host", b"transfer-encoding", b"authorization", b"x-api-key")
VERSIONS = frozenset({"1.1", "1.0"})
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
NOT_FORWARDED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"authorization",  # our keys never reach an engine
    b"x-api-key",
    b"x-request-id",  # set again when it is safe
    b"x-slo-ttft-ms",
    b"x-slo-tpot-ms",
}
OURS = b"x-joulegate-"
ENERGY = b"x-joulegate-energy"
TRUE_LENGTH = b"x-joulegate-true-output-tokens"
NOT_RELAYED = HOP_BY_HOP | {b"content-length", b"x-request-id"}

MAX_DIGITS = 12  # of a Content-Length that is not looked at twice
MAX_SIZE = 8  # digits of the size of a chunk that is not looked at twice
LENGTH_LINE = re.compile(rb"(?i)\r\ncontent-length: *(\d{1,12})(?=\r\n)")

SEGMENT = r"/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.~:@!$&'()*+,=-]+"
PATH = re.compile(rf"/v1(?:{SEGMENT})+/?")
COMMON = frozenset({"/v1/chat/completions", "/v1/completions"})
OTHERS = frozenset({"/tokenize", "/detokenize"})
TGI_ONLY = frozenset({"/generate", "/generate_stream", "/info"})
# engines' administration that lives under /v1
DENIED = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
SAFE_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}".encode() for s in HTTPStatus}
UUID = re.compile(rb"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}")


class RequestHead:
    """The head of a request without target and length, checked.

    The requests of one connection mostly have the same one: what follows from it is worked out once.
    """

    __slots__ = ("_lines", "expects", "fields", "headers", "known", "method", "version")

    def __init__(
        self, method: str, version: str, headers: Sequence[Header], fields: dict[bytes, bytes]
    ) -> None:
        """`fields`: the headers by name; of a repeated one, the last."""
        self.method = method
        self.version = version
        self.headers = headers
        self.fields = fields
        self.expects = version == "1.1" and fields.get(b"expect", b"").lower() == b"100-continue"
        self.known: tuple[object, object] | None = None  # who sent it, and who says so
        self._lines: dict[bool, bytes] = {}

    def lines(self, encoded: bool) -> bytes:
        """What is forwarded of it, as header lines; not `encoded`: the answer must not be compressed."""
        found = self._lines.get(encoded)
        if found is None:
            pairs = forwarded(self.headers)
            if not encoded:
                pairs = [pair for pair in pairs if pair[0] != b"accept-encoding"]
            found = self._lines[encoded] = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
        return found


NO_HEAD = RequestHead("", "", (), {})


@dataclass(slots=True)  # not frozen: one for every message whose head is new
class Outline:
    """The bytes of a head around the digits of its Content-Length."""

    before: bytes
    after: bytes  # from the end of that line to the end of the head

    def body_of(self, data: bytes) -> bytes:
        """The body of a whole message with this head but for the length; b"": `data` is not that."""
        if not data.startswith(self.before):
            return b""
        first = len(self.before)
        end = data.find(b"\r", first, first + MAX_DIGITS + 1)
        digits = data[first:end]
        if end < 0 or not digits.isdigit() or not data.startswith(self.after, end):
            return b""
        start = end + len(self.after)
        return data[start:] if len(data) - start == int(digits) else b""


def outline(data: bytes, body: int) -> Outline | None:
    """Of a sound message of `body` bytes that came in one read; None: where its length stands is unclear."""
    head = data[: len(data) - body]
    found = list(LENGTH_LINE.finditer(head))
    if len(found) != 1 or not head.endswith(b"\r\n\r\n"):
        return None
    return Outline(head[: found[0].start(1)], head[found[0].end(1) :])


def whole_chunk(data: bytes) -> bytes:
    """The body of `data`, which is exactly one chunk but the last; b"": it is not, or not surely."""
    end = data.find(b"\r", 1, MAX_SIZE + 1)
    size = len(data) - end - 4
    if size <= 0 or not data.endswith(b"\r\n") or not data.startswith(b"%x\r\n" % size):
        return b""
    return data[end + 2 : -2]


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The head of an answer without status and framing."""

    headers: Sequence[Header]
    lines: bytes  # the same as header lines
    event_stream: bool  # one that can be read: not encoded
    encoded: bool


def reply_head(headers: Sequence[Header]) -> ReplyHead:
    kind = b""
    encoded = False
    for name, value in headers:
        if name == b"content-type":
            kind = value
        elif name == b"content-encoding":
            encoded = True
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    stream = kind.lower().startswith(b"text/event-stream")
    return ReplyHead(headers, lines, stream and not encoded, encoded)


def check_request_head(
    method: str, version: str, headers: Sequence[Header], header_bytes: int
) -> dict[bytes, bytes]:
    """The headers by name (of a repeated one, the last). Raises a GatewayError when the head is doubtful."""
    if version not in VERSIONS:
        raise UnsupportedVersion("only versions 1.1 and 1.0 of HTTP are spoken here")
    if method not in METHODS:
        raise MethodNotAllowed(f"{method} is not supported")
    if sum(len(name) + len(value) + 4 for name, value in headers) > header_bytes:
        raise HeadTooLarge("the request head is too large")
    fields = dict(headers)
    if len(fields) != len(headers):
        _check_once([name for name, _ in headers])
    encoding = fields.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or version != "1.1"):
        raise BadRequest("Transfer-Encoding must be 'chunked', in HTTP/1.1")
    if not ALIASES.isdisjoint(fields):
        raise BadRequest("a header that may be taken for another is not accepted")
    _check_host(fields.get(b"host"), version)
    return fields


def _check_once(names: list[bytes]) -> None:
    for name in ONCE:
        if names.count(name) > 1:
            raise BadRequest(f"more than one {name.decode()} header")


def _check_host(host: bytes | None, version: str) -> None:
    if host is None:
        if version == "1.1":
            raise BadRequest("no Host header")
        return
    match = HOST.fullmatch(host)
    if match is None or int(match[1] or 0) > 65535:
        raise BadRequest("invalid Host header")


def check_target(target: bytes, host: bytes | None) -> None:
    """A target that is no path must be a URL on this host."""
    scheme, _, rest = target.partition(b"://")
    if scheme.lower() not in (b"http", b"https") or host is None or rest.partition(b"/")[0] != host:
        raise BadRequest("the request target must be a path, or a URL on this host")


def check_path(raw_path: bytes) -> str:
    """The path to ask an instance for. Raises NoSuchRoute.

    Nothing is normalised: a spelling that some server might read as another path (percent-encoding, empty
    or dot segments, parameters, another case) is not a route here, so no spelling of an engine's own admin
    routes is.
    """
    path = raw_path.decode("ascii", "replace")
    if path in COMMON or path in OTHERS or path in TGI_ONLY:
        return path
    if PATH.fullmatch(path) is None or path.rstrip("/").lower() in DENIED:
        raise NoSuchRoute(f"no such route: {path[:200]}")
    return path


def request_head(
    method: str, path: str, query: bytes, ours: bytes, theirs: bytes, body_length: int | None
) -> bytes:
    """A request head for an instance: our header lines, then those a RequestHead made of the client's own."""
    target = b"%b?%b" % (path.encode(), query) if query else path.encode()
    if body_length is None:
        return b"%b %b HTTP/1.1\r\n%b%b\r\n" % (method.encode(), target, ours, theirs)
    return b"%b %b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n" % (
        method.encode(),
        target,
        ours,
        theirs,
        body_length,
    )


def forwarded(headers: Sequence[Header]) -> list[Header]:
    """The end-to-end headers of a request, less what is ours and what `Connection` names."""
    kept = [pair for pair in headers if pair[0] not in NOT_FORWARDED and not pair[0].startswith(OURS)]
    if len(kept) == len(headers):
        return kept
    nominated: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            nominated |= nominations(value)
    return [pair for pair in kept if pair[0] not in nominated] if nominated else kept


def nominations(value: bytes) -> set[bytes]:
    """What a Connection header makes hop-by-hop."""
    return {token.strip().lower() for token in value.split(b",")} - {b"close", b"keep-alive"}


def status_line(status: int) -> bytes:
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status


def relayed(path: str) -> bool:
    """Whether a (decoded) path belongs to the relay, which may still refuse its spelling."""
    return path.startswith("/v1/") or path in OTHERS or path in TGI_ONLY
