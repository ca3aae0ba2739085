"""Pure: from a client's request to what the gate is asked, and to the message an instance gets."""

import math
from dataclasses import dataclass

from joulegate.units import Seconds
from router import openai_api, responses
from router.dialects import Dialect, dialect_of, injects_usage
from router.errors import BadRequest, Forbidden
from router.head import ENERGY, SAFE_ID, TGI_ONLY, TRUE_LENGTH, UUID, RequestHead, request_head
from router.json_bytes import renamed
from router.ports import Caller, Endpoint, Engine, RelayRequest

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS"})
COMPUTED = frozenset(  # from their body alone: asked twice they say the same, and nothing is kept
    {
        "/tokenize",
        "/detokenize",
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/messages/count_tokens",
    }
)
MAX_SESSION = 256  # bytes of a session's name: many are remembered
BODYLESS = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


@dataclass(slots=True)  # not frozen: made for every request, see ports.RelayRequest
class Call:
    """A client's request, understood."""

    request: RelayRequest
    parsed: openai_api.Parsed
    dialect: Dialect
    query: bytes
    head: RequestHead
    body: bytearray
    energy: bool = False  # the client wants to know what its answer took

    @property
    def repeatable(self) -> bool:
        """Nothing is lost but an answer if it runs twice."""
        request = self.request
        return request.generative or request.method in IDEMPOTENT or request.route in COMPUTED


@dataclass(slots=True)
class Message:
    """What goes to one instance. `strip`: the usage event comes because we asked for it."""

    pieces: list[bytes | bytearray | memoryview]
    strip: bool


def understand(
    method: str,
    path: str,
    query: bytes,
    head: RequestHead,
    body: bytearray,
    caller: Caller,
    request_id: str,
    now: Seconds,
) -> Call:
    """Raises BadRequest (objectives) and Forbidden (a model this key may not use)."""
    fields = head.fields
    route = path.rstrip("/")
    parsed = openai_api.parse(route, body, fields.get(b"content-type", b""), caller.name)
    model = parsed.query.model
    if caller.models and model not in caller.models:
        raise Forbidden(f"this API key may not use the model '{model}'" if model else "name a model")
    generative = method == "POST" and route in openai_api.GENERATIVE
    session = fields.get(b"x-session-id") or fields.get(b"x-session-affinity")
    request = RelayRequest(
        id=request_id,
        route=route,
        generative=generative,
        stream=parsed.stream,
        caller=caller,
        query=parsed.query,
        input_chars=parsed.input_chars,
        fingerprint=openai_api.fingerprint(body),
        arrived=now,
        ttft=objective(fields, b"x-slo-ttft-ms", caller.min_ttft),
        tpot=objective(fields, b"x-slo-tpot-ms", caller.min_tpot),
        session=session[:MAX_SESSION].decode("latin-1") if session else "",
        method=method,
        engine=Engine.TGI if route in TGI_ONLY else None,
        response=responses.referred(route, parsed.previous) if route.startswith(responses.ROUTE) else "",
    )
    energy = caller.energy or fields.get(ENERGY, b"").lower() == b"true"
    return Call(request, parsed, dialect_of(route), query, head, body, energy)


def objective(headers: dict[bytes, bytes], name: bytes, least: Seconds) -> Seconds | None:
    """An objective the client set, in seconds, no tighter than its key allows."""
    given = headers.get(name)
    if given is None:
        return None
    try:
        value = float(given) / 1000.0
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise BadRequest(f"{name.decode()} must be a positive number of milliseconds")
    return Seconds(max(value, least))


def safe_id(given: bytes | None) -> str | None:
    """The client's own request id, if it can safely be sent on and logged."""
    return given.decode() if given is not None and SAFE_ID.fullmatch(given) else None


def message(call: Call, endpoint: Endpoint) -> Message:
    """What goes over the wire to `endpoint`."""
    pieces: list[bytes | bytearray | memoryview] | None = None
    request, body = call.request, call.body
    asked = request.query.model
    known = not endpoint.model or asked in ("", endpoint.model) or asked in endpoint.adapters
    if not (known or call.parsed.form):
        body = renamed(body, endpoint.model)
    if request.stream and injects_usage(call.dialect, endpoint) and openai_api.may_inject(call.parsed):
        pieces = openai_api.with_usage(body, call.parsed)
    strip = pieces is not None
    if pieces is None:
        pieces = [body] if body else []
    ours = b"host: %b\r\n" % endpoint.authority
    if endpoint.authorization is not None:
        ours += b"authorization: %b\r\n" % endpoint.authorization
    sent_id = request.id.encode()
    if endpoint.engine is not Engine.OPENAI or UUID.fullmatch(sent_id):
        ours += b"x-request-id: %b\r\n" % sent_id
    if endpoint.emulated and (tokens := call.head.fields.get(TRUE_LENGTH)) is not None:
        ours += b"%b: %b\r\n" % (TRUE_LENGTH, tokens)
    length: int | None = len(body)
    if strip:
        length = sum(map(len, pieces))
    elif not length and request.method in BODYLESS:
        length = None
    theirs = call.head.lines(encoded=not strip)  # an encoded stream could not be stripped
    pieces.insert(0, request_head(request.method, request.route, call.query, ours, theirs, length))
    return Message(pieces, strip)
