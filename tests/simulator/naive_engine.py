"""The engine of engine-profile/1 once more, one iteration at a time and as plain as can be: a reference.

It shares nothing with `simulator.engine`: not its costs, not its bookkeeping. Every quantity is summed anew
in every iteration.
"""

import math
from dataclasses import dataclass, field

from joulegate.engine_profile import EngineProfile


@dataclass
class Request:
    at: float
    prompt: int
    output: int
    generated: int = 0
    computed: int = 0  # tokens of prompt + generated that are in the KV cache through prefill
    first: float = math.nan
    finished: float = math.nan
    preemptions: int = 0

    def recompute(self) -> int:
        return self.prompt + self.generated

    def context(self) -> int:
        return self.prompt + self.generated


@dataclass
class Outcome:
    requests: list[Request]
    energy: float
    clocks_used: set[float] = field(default_factory=set)
    preemptions: int = 0
    iterations: int = 0


def iteration_time(profile: EngineProfile, clock: float, b: int, k: float, n: int, a: float) -> float:
    c = profile.latency
    x = clock / profile.max_clock
    pads = [g for g in profile.graph_batches if g >= b]
    b_pad = 0 if b == 0 else (min(pads) if pads else b)
    t_cmp = c.c0_s + c.c1_s_per_seq * b_pad + c.pc1_s_per_token * n
    t_gemm: float = (c.m0_s**c.p + (t_cmp / x) ** c.p) ** (1 / c.p)
    return (
        t_gemm
        + c.m1_s_per_ctx_token * k
        + c.pc2_s_per_token2 * a / x
        + c.h0_s
        + c.h1_s_per_seq * b
        + c.h2_s_per_token * (b + n)
    )


def power(profile: EngineProfile, clock: float, b: int, k: float, n: int, a: float, t: float) -> float:
    w = profile.power
    x = clock / profile.max_clock
    u_mem = (w.us_w_s + w.us_kv_s * k) / t
    u_flop = (w.us_tok_s * (b + n) + w.us_att_s * a) / (x * t)
    v = max(w.vmin, 1 - (1 - w.vmin) * (1 - x) / (1 - w.knee))
    g = w.s_fixed_share + (1 - w.s_fixed_share) * x * v**2
    return w.p_static_w + w.hm_w * u_mem + (w.d0_w + w.dm_w * u_mem + w.dc_w * min(1, u_flop / w.u_sat)) * g


def run(
    profile: EngineProfile,
    requests: list[Request],
    clock: float,
    commands: list[tuple[float, float]],
    until: float,
) -> Outcome:
    """Serve `requests` (in order of time); `commands` are (time, MHz). Energy is counted up to `until`."""
    limits, lowest = profile.engine, profile.clocks[0]
    future = sorted(requests, key=lambda r: r.at)
    orders = [(at + profile.actuation.clock_switch_s, mhz) for at, mhz in commands]
    queue: list[Request] = []
    running: list[Request] = []  # in order of admission
    outcome = Outcome(requests, 0.0)
    now = 0.0
    while True:
        while future and future[0].at <= now:
            queue.append(future.pop(0))
        while orders and orders[0][0] <= now:
            clock = orders.pop(0)[1]
        if not running and not queue:
            nxt = min(future[0].at if future else math.inf, until)
            outcome.energy += (nxt - now) * profile.tp * profile.power.p_idle_w
            now = nxt
            if not future:
                return outcome
            continue

        decoding = _make_room(running, queue, limits.kv_capacity_tokens, outcome)
        chunks = _chunks(profile, running, queue, decoding)
        b, k = len(decoding), sum(r.context() for r in decoding)
        n = sum(tokens for _, tokens in chunks)
        a = sum(tokens * (r.computed + tokens / 2) for r, tokens in chunks)
        used = float(clock)
        while True:
            t = iteration_time(profile, used, b, k, n, a)
            p = power(profile, used, b, k, n, a, t)
            if p <= profile.power.tdp_w or used <= lowest:
                break
            used = max(lowest, used - 0.0075 * profile.max_clock)
        outcome.clocks_used.add(used)
        outcome.energy += t * p * profile.tp
        outcome.iterations += 1
        now += t
        _deliver(decoding, chunks, running, now)


def _is_decoding(r: Request) -> bool:
    return r.generated > 0 and r.computed < 0


def _make_room(
    running: list[Request], queue: list[Request], capacity: int, outcome: Outcome
) -> list[Request]:
    while True:
        decoding = [r for r in running if _is_decoding(r)]
        held = sum(r.context() if _is_decoding(r) else r.recompute() for r in running)
        if not decoding or held + len(decoding) <= capacity:
            return decoding
        victim = running.pop()
        victim.computed = 0
        victim.preemptions += 1
        outcome.preemptions += 1
        queue.insert(0, victim)


def _chunks(
    profile: EngineProfile, running: list[Request], queue: list[Request], decoding: list[Request]
) -> list[tuple[Request, int]]:
    limits = profile.engine
    budget = limits.max_num_batched_tokens - len(decoding)
    chunks = []
    for r in running:
        if not _is_decoding(r) and budget > 0:
            tokens = min(budget, r.recompute() - r.computed)
            chunks.append((r, tokens))
            budget -= tokens
    while budget > 0 and queue:
        head = queue[0]
        held = sum(r.context() if _is_decoding(r) else r.recompute() for r in running)
        fits = held + head.recompute() <= 0.97 * limits.kv_capacity_tokens
        if running and not (fits and len(running) < limits.max_num_seqs):
            break
        running.append(queue.pop(0))
        tokens = min(budget, head.recompute())
        chunks.append((head, tokens))
        budget -= tokens
    return chunks


def _deliver(
    decoding: list[Request], chunks: list[tuple[Request, int]], running: list[Request], now: float
) -> None:
    tokens_for = list(decoding)
    for r, tokens in chunks:
        r.computed += tokens
        if r.computed == r.recompute():
            r.computed = -1  # through
            tokens_for.append(r)
    for r in tokens_for:
        r.generated += 1
        if r.generated == 1:
            r.first = now
        if r.generated == r.output:
            r.finished = now
            running.remove(r)
