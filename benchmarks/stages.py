"""Shell: what each decision about a request costs, without sockets: least of many repeats, microseconds.

The least is hardly moved by what else the machine does, so this says where a change of code helps or hurts;
what a request costs in all is `overhead`'s to say (cold caches and the kernel double these figures).
"""

import argparse
import json
import random
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.fake_upstream import JSON_TOKENS, PROMPT_TOKENS, Answers, chat_completion
from benchmarks.gateway import settings
from benchmarks.load import request_bytes
from benchmarks.proxies import ROOT
from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.accounts import Accounts
from router.build_fleet import build_fleet
from router.dialects import Tap, dialect_of, usage_of
from router.fleet import Signal
from router.gate import FleetGate
from router.head import RequestHead
from router.intake import Call, message, understand
from router.ports import Caller, Ending, RelayRequest, Report
from router.rate_limits import RateLimits
from router.responses import Makers
from router.tally import Tally

PROFILE = str(ROOT / "configs/profiles/h100_llama-3.1-8b_tp1.json")
ROUTE = "/v1/chat/completions"
REPORT = Report(Ending.OK, 200, prompt_tokens=PROMPT_TOKENS, completion_tokens=JSON_TOKENS)
REPEATS = 50


def fleet_gate(instances: int) -> FleetGate:
    """A gate over healthy instances that have their clocks chosen once."""
    entries = [
        {"name": f"i{n}", "url": "http://127.0.0.1:1", "profile": PROFILE, "slots": 256}
        for n in range(instances)
    ]
    fleet = build_fleet(Gateway.model_validate(settings(0, "none", [], entries, mode="advise")))
    now = Seconds(time.monotonic())
    for model, _, member in fleet.members():
        member.status.signal(Signal.PROBE_PASSED, now)
        member.refresh(now)
        member.law.telemetry_at = Seconds(now + 3600.0)  # its agent is heard of as long as this takes
        model.steering.tick(member.law, now)
    rng = random.Random(0).randrange
    limits = RateLimits({}, now)
    return FleetGate(
        fleet, Accounts(fleet, Tally()), limits, Makers(), 0.1, rng, time.monotonic, lambda: None
    )


def a_call() -> Call:
    options = argparse.Namespace(mode="closed", prompt_bytes=1000, api_key="sk-bench", port=8080)
    head, _, body = request_bytes(options, 0).partition(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
    headers = [(name, value) for name, _, value in lines]
    now = Seconds(time.monotonic())
    return understood(RequestHead("POST", "1.1", headers, dict(headers)), bytearray(body), now)


def understood(head: RequestHead, body: bytearray, now: Seconds) -> Call:
    return understand("POST", ROUTE, b"", head, body, Caller("bench"), "0" * 32, now)


def stages(instances: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is timed, by name."""
    gate, call = fleet_gate(instances), a_call()
    model = next(iter(gate.fleet.unique()))
    member = next(iter(model.members.values()))
    query = call.request.query
    for tokens in range(200):
        model.predictor.observe(query, model.predictor.predict(query), 50 + tokens % 40)
    prediction = model.predictor.predict(query)
    answers, body = Answers(100), chat_completion()
    event = answers.token.partition(b"\r\n")[2].removesuffix(b"\r\n")
    tap = Tap(dialect_of(ROUTE), True)

    yield "parse and understand", lambda: understood(call.head, call.body, call.request.arrived)
    yield "predict the output length", lambda: model.predictor.predict(query)
    yield "admit, pick, account, give back", lambda: serve_one(gate, call.request)
    yield "the message to the instance", lambda: message(call, member.endpoint)
    yield "usage of an answer", lambda: usage_of(body)
    yield "one streamed event", lambda: tap.feed(event)
    yield "learn from one answer", lambda: model.predictor.observe(query, prediction, 60)
    yield "choose one clock", lambda: model.steering.tick(member.law, Seconds(time.monotonic()))


def serve_one(gate: FleetGate, request: RelayRequest) -> None:
    """One that came just now: an old one would be taken for late."""
    request.arrived = Seconds(time.monotonic())
    gate.enter(request).close(REPORT)


def least(action: Callable[[], object]) -> float:
    """Microseconds of one call."""
    calls = max(1, int(2e-3 / max(1e-7, min(timeit.repeat(action, number=3, repeat=3)) / 3)))
    return min(timeit.repeat(action, number=calls, repeat=REPEATS)) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench stages", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--instances", type=int, default=8)
    options = parser.parse_args()
    figures = {name: round(least(action), 2) for name, action in stages(options.instances)}
    for name, microseconds in figures.items():
        sys.stdout.write(f"{name:<34}{microseconds:>8.1f} us\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
