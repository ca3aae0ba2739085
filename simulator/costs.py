"""Pure: what one engine iteration costs in seconds and joules, the constants of each clock worked out once.

Same formulas as `predictor.physics`, arranged for speed. At one clock and one number B of decoding sequences
a decode-only iteration is linear in the context K that it reads, in time and (away from the board's power
limit) in energy:

    t(K) = t0[B] + m1*K
    E(K) = tp * P * t = e0[B] + e1*K

because P*t = p_static*t + hm*U + (d0*t + dm*U + dc*F)*g with U = us_w + us_kv*K and F = us_tok*B/(x*u_sat).
This holds while t >= F (`min(1, u_flop/u_sat)` not clipped) and P <= tdp. P is a ratio of linear functions of
K, so it is monotone: it stays under the limit between two K where it is under it.
"""

from collections.abc import Sequence
from math import inf, sqrt

from joulegate.engine_profile import EngineProfile
from predictor.physics import TDP_STEP, PhysicsModel

Cost = tuple[float, float, float]  # seconds, joules of the instance, MHz the board ends up at


class Rates:
    """The formulas with the constants of one clock; the board's power limit ignored."""

    __slots__ = (
        "_attention",
        "_cmp0",
        "_cmp1",
        "_flops",
        "_h1",
        "_host",
        "_inverse_p",
        "_m0p",
        "_mem",
        "_mem0",
        "_p",
        "_pads",
        "_prefill",
        "_static",
        "_tokens",
        "_u_att",
        "_u_kv",
        "_u_tok",
        "clock",
        "e1",
        "m1",
    )

    def __init__(self, profile: EngineProfile, clock: float, pads: Sequence[int]) -> None:
        c, w, x = profile.latency, profile.power, clock / profile.max_clock
        v = max(w.vmin, 1.0 - (1.0 - w.vmin) * (1.0 - x) / (1.0 - w.knee))
        g = w.s_fixed_share + (1.0 - w.s_fixed_share) * x * v * v
        self.clock = clock
        self._pads = pads
        self._p, self._inverse_p, self._m0p = c.p, 1.0 / c.p, c.m0_s**c.p
        self._cmp0, self._cmp1, self._prefill = c.c0_s / x, c.c1_s_per_seq / x, c.pc1_s_per_token / x
        self.m1, self._attention = c.m1_s_per_ctx_token, c.pc2_s_per_token2 / x
        self._host, self._h1, self._tokens = c.h0_s, c.h1_s_per_seq, c.h2_s_per_token
        self._static = profile.tp * (w.p_static_w + g * w.d0_w)  # watts that flow while anything runs
        self._mem = profile.tp * (w.hm_w + g * w.dm_w)
        self._mem0, self._u_kv = w.us_w_s, w.us_kv_s
        self._flops = profile.tp * g * w.dc_w
        self._u_tok, self._u_att = w.us_tok_s / (x * w.u_sat), w.us_att_s / (x * w.u_sat)
        self.e1 = self._static * self.m1 + self._mem * self._u_kv

    def uncapped(self, decoding: int, context: float, tokens: int, attention: float) -> tuple[float, float]:
        """(seconds, joules) of an iteration with `tokens` new prompt tokens of that attention work."""
        compute = self._cmp0 + self._cmp1 * self._pads[decoding] + self._prefill * tokens
        t: float = (self._m0p + compute**self._p) ** self._inverse_p
        t += (
            self.m1 * context
            + self._attention * attention
            + self._host
            + self._h1 * decoding
            + self._tokens * (decoding + tokens)
        )
        busy = self._u_tok * (decoding + tokens) + self._u_att * attention
        joules = (
            self._static * t
            + self._mem * (self._mem0 + self._u_kv * context)
            + self._flops * (busy if busy < t else t)
        )
        return t, joules


class ClockCosts(Rates):
    """Iteration costs of one profile at one clock. Seconds; joules of the whole instance (tp GPUs).

    `t0`, `e0` and `linear` are indexed by the number of decoding sequences.
    """

    __slots__ = ("_ladder", "_limit", "_profile", "e0", "linear", "t0")

    def __init__(
        self, profile: EngineProfile, clock: float, pads: Sequence[int], cap_watts: float = inf
    ) -> None:
        """`cap_watts`: the power limit that is set on each board; none is above its design power."""
        super().__init__(profile, clock, pads)
        self._profile = profile
        self._ladder: list[Rates] = []  # of the clocks that a board above its limit steps down to
        # A board at its lowest clock has nothing left to lower: no limit applies.
        limit = profile.tp * min(profile.power.tdp_w, cap_watts)
        self._limit = limit if clock > profile.clocks[0] else inf
        sizes = range(len(pads))
        self.t0 = [self.uncapped(b, 0, 0, 0.0)[0] for b in sizes]
        self.e0 = [
            self._static * t + self._mem * self._mem0 + self._flops * self._u_tok * b
            for b, t in zip(sizes, self.t0, strict=True)
        ]
        self.linear = [self.is_linear(b, 0, profile.engine.kv_capacity_tokens) for b in sizes]

    def is_linear(self, decoding: int, low: float, high: float) -> bool:
        """Whether t and E are linear in K for low <= K <= high."""
        t0, e0, limit = self.t0[decoding], self.e0[decoding], self._limit
        at_low, at_high = t0 + self.m1 * low, t0 + self.m1 * high
        return (
            at_low >= self._u_tok * decoding
            and e0 + self.e1 * low <= limit * at_low
            and e0 + self.e1 * high <= limit * at_high
        )

    def decode(self, decoding: int, context: float) -> Cost:
        """An iteration without prompt tokens."""
        if self.linear[decoding]:
            seconds, joules = self.t0[decoding] + self.m1 * context, self.e0[decoding] + self.e1 * context
            return seconds, joules, self.clock
        return self.mixed(decoding, context, 0, 0.0)

    def mixed(self, decoding: int, context: float, tokens: int, attention: float) -> Cost:
        """Any iteration, within the board's power limit."""
        rates: Rates = self
        t, joules = rates.uncapped(decoding, context, tokens, attention)
        rung = 0
        while joules > self._limit * t and rates.clock > self._profile.clocks[0]:
            rates = self._rung(rung)
            t, joules = rates.uncapped(decoding, context, tokens, attention)
            rung += 1
        return t, joules, rates.clock

    def _rung(self, rung: int) -> Rates:
        """The clock that a board steps down to after `rung` steps that were not enough."""
        if rung == len(self._ladder):
            step = TDP_STEP * self._profile.max_clock
            above = self._ladder[-1].clock if self._ladder else self.clock
            clock = max(float(self._profile.clocks[0]), above - step)
            self._ladder.append(Rates(self._profile, clock, self._pads))
        return self._ladder[rung]


class EngineCosts:
    """`ClockCosts` of every clock used so far, shared by all engines of one profile."""

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self.idle_watts = profile.tp * profile.power.p_idle_w  # of the whole instance
        self.model = PhysicsModel(profile)  # what the laws are told: the engine's own formula
        self._pads = [self.model.padded(b) for b in range(profile.engine.max_num_seqs + 1)]
        self._by_clock: dict[float, ClockCosts] = {}
        self._capped: dict[float, ClockCosts] = {}  # the same under the power cap that was asked for last
        self._cap = inf

    def at(self, clock: float, cap_watts: float = inf) -> ClockCosts:
        """`cap_watts`: the limit set on each board. Those of one cap are kept until another is asked for."""
        known = self._by_clock
        if cap_watts < self.profile.power.tdp_w:
            if cap_watts != self._cap:
                self._cap, self._capped = cap_watts, {}
            known = self._capped
        costs = known.get(clock)
        if costs is None:
            costs = known[clock] = ClockCosts(self.profile, clock, self._pads, cap_watts)
        return costs


def steps_within(first: float, growth: float, span: float) -> int:
    """How many iterations end within `span` seconds."""
    half = first - 0.5 * growth
    steps = int(2.0 * span / (half + sqrt(half * half + 2.0 * growth * span)))
    while steps * (first + 0.5 * growth * (steps - 1)) > span:
        steps -= 1
    while (steps + 1) * (first + 0.5 * growth * steps) <= span:
        steps += 1
    return steps


def steps_started(first: float, growth: float, span: float) -> int:
    """How many iterations start within less than `span` seconds (at least one, for span > 0)."""
    steps = steps_within(first, growth, span)
    return steps if steps * (first + 0.5 * growth * (steps - 1)) == span else steps + 1
