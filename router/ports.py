"""Pure: the seams between the relay (bytes) and the gate (decisions).

The relay owns a request from entry to exit; it asks the gate for a slot, tells the slot what it sees on the
wire, and releases it exactly once. The gate classifies, queues, picks, accounts and learns. Neither knows how
the other works.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Protocol

from joulegate.domain import LengthQuery
from joulegate.units import Seconds
from router.errors import UpstreamError
from router.head import ReplyHead
from router.limits import UpstreamLimits


class Engine(Enum):
    VLLM = "vllm"
    TGI = "tgi"
    OPENAI = "openai"  # anything else that speaks OpenAI: no metrics, no min_tokens


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one instance listens. `authorization` is sent upstream instead of the client's, when set."""

    name: str
    pool: str
    engine: Engine
    host: str
    port: int
    tls: bool = False
    ca_file: str | None = None
    client_cert: tuple[str, str] | None = None  # files of the certificate shown to it, and of its key
    authorization: bytes | None = None
    emulated: bool = False  # only an emulated engine is told the true output length of a replayed trace
    usage_injection: bool = True  # may be asked for usage in a stream (auto|off); never asked of OPENAI
    model: str = ""  # the name it knows its model by: asked for instead of an alias; "": as clients ask
    adapters: frozenset[str] = frozenset()  # other names that it knows itself
    limits: UpstreamLimits | None = None  # its own times to answer; None: the connection pool's
    authority: bytes = field(init=False, compare=False)  # what the Host header says
    place: tuple[str, int, str | None] = field(init=False, compare=False)  # whom a connection to it reaches

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "authority", f"{host}:{self.port}".encode())
        object.__setattr__(self, "place", (self.host, self.port, (self.ca_file or "") if self.tls else None))


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `models` empty: all. Clamps are the tightest objectives the key may ask for."""

    name: str = ""
    models: frozenset[str] = frozenset()
    min_ttft: Seconds = Seconds(0.0)
    min_tpot: Seconds = Seconds(0.0)
    energy: bool = False  # its answers say what they took


@dataclass(slots=True, unsafe_hash=True)  # never changed: not frozen, which costs 3 us a request
class RelayRequest:
    """What routing needs to know of one request; the bytes stay with the relay."""

    id: str
    route: str  # canonical path, e.g. "/v1/chat/completions"
    generative: bool  # produces tokens: typed, queued and predicted; else only picked
    stream: bool
    caller: Caller
    query: LengthQuery  # input_tokens is 0 but for token ids: the gate learns tokens per character
    input_chars: int  # a token id counts as 4
    fingerprint: int  # of the body: a query of death is not sent again
    arrived: Seconds  # monotonic
    ttft: Seconds | None = None  # x-slo-ttft-ms, clamped
    tpot: Seconds | None = None  # x-slo-tpot-ms, clamped
    session: str = ""
    method: str = "POST"
    engine: Engine | None = None  # only an instance of this engine will do (TGI's own routes)
    response: str = ""  # id of the stored response it is about: only the instance that made it knows it


class Ending(StrEnum):
    """How a request left."""

    OK = "ok"
    CLIENT_ERROR = "client_error"  # 4xx of the engine: the client's own fault, never the instance's
    CLIENT_LEFT = "client_left"
    REFUSED = "refused"  # by us, before any instance saw it
    SHED = "shed"
    UPSTREAM_ERROR = "upstream_error"  # 5xx, or an error event inside a stream
    UPSTREAM_DOWN = "upstream_down"  # connect, reset, truncated
    UPSTREAM_BUSY = "upstream_busy"  # 429, 408, vLLM's queue-limit 503: try the next, not unhealthy
    KEY_REFUSED = "key_refused"  # 401 or 403 to the key that we gave it: the operator's fault
    NO_MODEL = "no_model"  # 404 to the model that it is there for: it serves another by now
    TIMEOUT = "timeout"
    RESTEERED = "resteered"  # taken back before its first byte, to be asked of another instance


@dataclass(slots=True, unsafe_hash=True)  # as above
class Report:
    """What the relay knows at the exit."""

    ending: Ending
    status: int
    prompt_tokens: int | None = None  # from usage
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    events: int = 0  # SSE data events that carried output
    error: str = ""
    first_output: Seconds | None = None  # monotonic: first content, not first byte
    last_output: Seconds | None = None


# Ends an exchange with this error, if no byte of a body has come; else does nothing. Only until it is over.
Recall = Callable[[UpstreamError], None]


class Slot(Protocol):
    """A place on one instance. Every method is synchronous and cheap: it runs in the path of the bytes."""

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def header_lines(self) -> bytes:
        """Extra response headers (x-joulegate-*), each line ended."""
        ...

    def sent(self, now: Seconds, recall: "Recall | None" = None) -> None:
        """The request's last byte left for the instance, from where `recall` takes it back."""

    def progress(self, events: int, now: Seconds) -> None:
        """`events` more SSE events with output arrived (once a read, not once an event)."""

    def made(self, response: str) -> None:
        """The answer is a response with this id, which the instance may be asked for later."""

    def joules(self) -> float | None:
        """What the request took so far, as attributed to it; None: nobody meters the instance."""
        ...

    def close(self, report: Report) -> None:
        """The one exit: success, error and cancel alike. Further calls do nothing."""


class Gate(Protocol):
    """`query.model` is "" where the request names none: the only model there is, else NoSuchModel.

    The relay closes a slot before it leaves the context manager; the exit only catches what slipped through.
    """

    def admit(self, request: RelayRequest) -> AbstractAsyncContextManager[Slot]:
        """Wait for a place. Raises a GatewayError (router.errors): no such model, shed, pool down.

        Cancelling the wait takes the request out of the queue.
        """
        ...

    def again(self, slot: Slot, report: Report) -> AbstractAsyncContextManager[Slot] | None:
        """A place on another instance after `slot` failed before its first byte; None: do not try again.

        `slot` was closed with `report` just before. Asked at most once a request, and never for an answer
        that is the client's own fault.
        """
        ...

    def models(self) -> Sequence["ModelCard"]:
        """What GET /v1/models lists, before the caller's own list is applied."""
        ...


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of GET /v1/models."""

    id: str
    owned_by: str = "joulegate"
    max_model_len: int | None = None
    extra: Mapping[str, object] = field(default_factory=dict)


class Sink(Protocol):
    """Takes the body of an answer."""

    def feed(self, body: bytes) -> None:
        """What one read of the instance's socket brought. Must not raise."""


class Reply(Protocol):
    """An instance's answer whose head has arrived. Leaving its context early closes the connection."""

    @property
    def status(self) -> int: ...

    @property
    def head(self) -> ReplyHead:
        """Names in lower case, hop-by-hop fields and framing left out."""
        ...

    @property
    def length(self) -> int | None:
        """Content-Length; None: chunked, or until the connection closes."""
        ...

    @property
    def begun(self) -> bool:
        """At least one byte of the body has come."""
        ...

    def read(self, limit: int) -> Awaitable[bytes | None]:
        """The whole body; None if it is longer than `limit` (then nothing is lost: pump it)."""
        ...

    def pump(self, sink: Sink) -> Awaitable[None]:
        """Feed the body to `sink` until its end. Raises UpstreamDown (truncated) or UpstreamSilent."""
        ...

    def pause(self) -> None:
        """Stop reading the instance's socket: the client does not keep up."""

    def resume(self) -> None: ...


class Upstream(Protocol):
    def exchange(
        self,
        endpoint: Endpoint,
        message: Sequence[bytes | bytearray | memoryview],
        *,
        head_only: bool,
        with_body: bool,
        repeatable: bool,
        sent: Callable[[Seconds, Recall], None],
    ) -> AbstractAsyncContextManager[Reply]:
        """Send one request, wait for the head of the answer; `with_body`: and for the first byte of its body.

        `message` is the request's head and body. `repeatable`: it may be sent once more, on a fresh
        connection to the same instance, when a kept connection dies unanswered. `sent` is told when the
        request was handed to the connection, and by what it is taken back. Raises an UpstreamError or
        GatewayBusy (router.errors).
        """
        ...
