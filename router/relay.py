"""Shell: one request from entry to exit.

    relay = Relay(gate, upstream, keys, limits, refused)    for http=guard(limits, relay)
    relay.keys = keys                                       to reload them

One coroutine owns the request: key, path, body, place, instance, answer, report. A `Stepper` runs it, not a
task. It is cancelled when the client leaves, wherever it waits; the way out is the same for success, error
and cancel. The status is committed with the first byte of the body, so that an instance which dies before it
can be replaced by another, once.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

from joulegate.units import Seconds
from router import openai_api
from router.answer_energy import with_energy
from router.client import ClientExchange
from router.dialects import RESPONSES, Tap
from router.errors import (
    GatewayBusy,
    GatewayError,
    KeyRefused,
    MethodNotAllowed,
    ModelGone,
    NoSuchModel,
    NoSuchRoute,
    UpstreamDown,
    UpstreamError,
    translate,
)
from router.head import RequestHead, check_path, reply_head, status_line
from router.intake import Call, message, safe_id, understand
from router.keys import Keys
from router.limits import RelayLimits
from router.ports import Caller, Ending, Endpoint, Gate, Reply, Report, Sink, Slot, Upstream
from router.sinks import EventSink, NamingSink, PlainSink
from router.verdict import ending_of, ending_of_failure, try_another

CLIENT_LEFT = Report(Ending.CLIENT_LEFT, 0)
JSON_OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
KEEP = 256 * 1024  # bytes of an answer that is not a stream, to find its usage in
MODELS = "/v1/models"
STOPPING = GatewayBusy("the gateway is stopping", retry_after=1.0)
logger = logging.getLogger("joulegate.relay")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An attempt that ended before its first byte: nothing was sent to the client yet."""

    report: Report
    error: GatewayError | None  # or the instance's own answer:
    head: bytes = b""
    body: bytes = b""


class Relay:
    def __init__(
        self,
        gate: Gate,
        upstream: Upstream,
        keys: Keys,
        limits: RelayLimits,
        refused: Callable[[GatewayError], None],
    ) -> None:
        """`refused` is told of every error the client got that no slot's report shows."""
        self.gate = gate
        self.upstream = upstream
        self.keys = keys
        self.limits = limits
        self.refused = refused
        self._keyless: set[str] = set()  # instances whose key is wrong, as the log was told
        self._process = secrets.token_hex(8)
        self._served = 0

    async def serve(self, client: ClientExchange) -> None:
        now = Seconds(time.monotonic())
        self._served += 1
        sent_id = safe_id(client.head.fields.get(b"x-request-id")) or f"{self._process}{self._served:016x}"
        try:
            await self._serve(client, sent_id, now)
        except GatewayError as error:
            self.refused(error)
            client.answer(error, [(b"x-request-id", sent_id.encode())])
        except asyncio.CancelledError:
            if not client.gone and not client.started:
                client.answer(STOPPING, [(b"x-request-id", sent_id.encode())])

    async def _serve(self, client: ClientExchange, sent_id: str, now: Seconds) -> None:
        head, target = client.head, client.target
        caller = self._caller(head)
        if target.path.startswith(MODELS):
            self._models(client, target.path, head.method, caller)
            return
        path = check_path(target.raw_path)
        body = await client.read_body(self.limits.body)
        call = understand(head.method, path, target.query, head, body, caller, sent_id, now)
        refusal = await self._place(client, call)
        if refusal is None:
            return
        if refusal.error is not None:
            client.answer(refusal.error, [(b"x-request-id", sent_id.encode())])
            return
        client.begin(refusal.report.status, refusal.head, len(refusal.body))
        client.write(refusal.body)
        client.finish()

    def _caller(self, head: RequestHead) -> Caller:
        """Asked once for all the requests of a connection that have the same head."""
        known = head.known
        if known is not None and known[0] is self.keys:
            return cast("Caller", known[1])
        caller = self.keys.caller(head.fields)
        head.known = (self.keys, caller)
        return caller

    def _models(self, client: ClientExchange, path: str, method: str, caller: Caller) -> None:
        if method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{method} is not supported here")
        cards = [card for card in self.gate.models() if not caller.models or card.id in caller.models]
        wanted = path.removeprefix(MODELS)
        if wanted and wanted[0] != "/":
            raise NoSuchRoute(f"no such route: {path[:200]}")
        wanted = wanted[1:]
        if wanted:
            cards = [card for card in cards if card.id == wanted]
            if not cards:
                raise NoSuchModel(f"the model '{wanted}' does not exist", param="model")
        body = openai_api.model_card(cards[0]) if wanted else openai_api.model_list(cards)
        client.begin(200, JSON_OK, len(body))
        client.write(body)
        client.finish()

    async def _place(self, client: ClientExchange, call: Call) -> Refusal | None:
        """Ask one instance, then at most one more."""
        async with self.gate.admit(call.request) as slot:
            first = await self._attempt(client, call, slot)
        if first is None or not try_another(first.report.ending, first.error, call.repeatable):
            return first
        again = self.gate.again(slot, first.report)
        if again is None:
            return first
        try:
            async with again as second_slot:
                return await self._attempt(client, call, second_slot)
        except GatewayError as error:
            logger.info("no second instance", extra={"request": call.request.id, "why": error.message})
            return first

    async def _attempt(self, client: ClientExchange, call: Call, slot: Slot) -> Refusal | None:
        """Ask the slot's instance; None: the client has its answer, or as much as there was of it.

        Closes the slot, whatever happens.
        """
        report = CLIENT_LEFT
        endpoint = slot.endpoint
        request = message(call, endpoint)
        generative = call.request.generative
        try:
            async with self.upstream.exchange(
                endpoint,
                request.pieces,
                head_only=call.request.method == "HEAD",
                with_body=generative,
                repeatable=call.repeatable,
                sent=slot.sent,
            ) as reply:
                if generative and not reply.begun and reply.status == 200:
                    raise UpstreamDown(f"{endpoint.name}: an empty answer")
                if reply.status >= 400:
                    self._check_key(endpoint, reply.status)
                    refusal = await self._refusal(call, slot, reply)
                    if refusal is not None:
                        report = refusal.report
                        return refusal
                report = await self._pass_on(client, call, slot, reply, request.strip)
                return None
        except (UpstreamError, GatewayBusy) as error:
            report = Report(ending_of_failure(error), 0, error=error.message)
            return Refusal(report, error)
        finally:
            slot.close(report)

    def _check_key(self, endpoint: Endpoint, status: int) -> None:
        """Raises KeyRefused where an instance does not take the key that is ours: no client can mend that."""
        if endpoint.authorization is None or status not in (401, 403):
            return
        why = f"{endpoint.name} answered {status} to the gateway's own key: its `api_key` in gateway.yaml"
        if endpoint.name not in self._keyless:
            self._keyless.add(endpoint.name)
            logger.error("instance refuses our key", extra={"instance": endpoint.name, "problem": why})
        raise KeyRefused(why)

    async def _whole(self, call: Call, reply: Reply) -> bytes | None:
        """The answer in one piece, where something is added to it; None: as it comes."""
        if not call.request.generative or reply.head.encoded or call.request.method == "HEAD":
            return None
        return await reply.read(KEEP)

    async def _refusal(self, call: Call, slot: Slot, reply: Reply) -> Refusal | None:
        """An error answer, read whole and put into OpenAI's shape; None: too long for that."""
        body = await reply.read(self.limits.error_body)
        if body is None:
            return None
        status = reply.status
        report = Report(ending_of(status, body), status, error=body[:200].decode("utf-8", "replace"))
        if report.ending is Ending.NO_MODEL and lost_its_model(call, slot.endpoint):
            name, model = slot.endpoint.name, slot.endpoint.model
            return Refusal(report, ModelGone(f"{name} answered that it does not know {model}"))
        lines = reply.head.lines
        if call.dialect.translates and call.request.method != "HEAD" and not reply.head.encoded:
            translated = translate(status, body)
            if translated is not None:
                body = translated
                headers = [pair for pair in reply.head.headers if pair[0] != b"content-type"]
                lines = reply_head([*headers, (b"content-type", b"application/json")]).lines
        return Refusal(report, None, answer_head(status, lines, call, slot), body)

    async def _pass_on(
        self, client: ClientExchange, call: Call, slot: Slot, reply: Reply, strip: bool
    ) -> Report:
        """The status is committed: from here on an error can only be said inside the answer."""
        status = reply.status
        head = answer_head(status, lines_of(reply), call, slot)
        sink: EventSink | PlainSink
        if reply.head.event_stream:
            edit = partial(told, slot) if call.energy else None
            sink = EventSink(client, slot, Tap(call.dialect, strip, edit))
            client.begin(status, head, None)
        elif call.energy and status == 200 and (body := await self._whole(call, reply)) is not None:
            sink = PlainSink(client, KEEP)
            answer = told(slot, body)
            client.begin(status, head, len(answer))
            named(call, slot, sink).feed(answer)
            sink.end()
            return finished(Ending.OK, status, sink, "")
        else:
            sink = PlainSink(client, KEEP if call.request.generative else 0)
            client.begin(status, head, reply.length)
        if not call.request.generative:
            client.flush()
        client.feeder = reply
        if client.flow.write_paused:
            reply.pause()
        try:
            await reply.pump(named(call, slot, sink) if status == 200 else sink)
        except UpstreamError as error:
            sink.broken(error)
            return finished(ending_of_failure(error), status, sink, error.message)
        except asyncio.CancelledError:
            if not client.gone:
                sink.broken(STOPPING)
            return finished(Ending.CLIENT_LEFT, status, sink, "")
        finally:
            client.feeder = None
        sink.end()
        if sink.failed:
            return finished(ending_of(500, sink.failed.encode()), status, sink, sink.failed)
        return finished(ending_of(status, b""), status, sink, "")


def finished(ending: Ending, status: int, sink: EventSink | PlainSink, error: str) -> Report:
    usage = sink.usage()
    return Report(
        ending=ending,
        status=status,
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        cached_tokens=usage.cached,
        events=sink.count,
        error=error,
        first_output=sink.first_output,
        last_output=sink.last_output,
    )


def lost_its_model(call: Call, endpoint: Endpoint) -> bool:
    """Whether it was asked for the model that it is there for: of an adapter it need not have heard.

    In a form an alias is left as it is.
    """
    asked, ours = call.request.query.model, endpoint.model
    return ours != "" and asked not in endpoint.adapters and (asked == ours or not call.parsed.form)


def lines_of(reply: Reply) -> bytes:
    """Header lines of an answer. Where it says to ask elsewhere, not where: clients would, keys and all."""
    if 300 <= reply.status < 400:
        return reply_head([pair for pair in reply.head.headers if pair[0] != b"location"]).lines
    return reply.head.lines


def named(call: Call, slot: Slot, sink: Sink) -> Sink:
    """`sink`, and before it one that tells which response the answer is, where it is one."""
    return NamingSink(slot, sink) if call.dialect is RESPONSES and call.request.generative else sink


def told(slot: Slot, usage: bytes) -> bytes:
    """An answer, or the event of a stream, whose usage says what it took."""
    return with_energy(usage, slot.joules(), slot.endpoint.emulated)


def answer_head(status: int, lines: bytes, call: Call, slot: Slot) -> bytes:
    """Status line and header lines for the client, without framing fields."""
    sent_id = call.request.id.encode()
    return b"%b\r\n%b%bx-request-id: %b\r\n" % (status_line(status), lines, slot.header_lines, sent_id)
