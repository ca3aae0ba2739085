"""Pure: iteration time and power from an engine profile (engine-profile/1), in closed form.

Work of one iteration: B sequences decoding over K context tokens, N new prompt tokens with attention work A.
With x = f / f_max and B_pad the CUDA graph size that B is padded to:

    t_cmp  = c0 + c1*B_pad + pc1*N
    t_gemm = (m0^p + (t_cmp/x)^p)^(1/p)                 weights are read while the GEMMs run
    t      = t_gemm + m1*K + pc2*A/x + h0 + h1*B + h2*(B+N)

    u_mem  = (us_w + us_kv*K)/t            share of peak HBM bandwidth
    u_flop = (us_tok*(B+N) + us_att*A)/(x*t)  share of peak flops at this clock
    v      = max(vmin, 1-(1-vmin)*(1-x)/(1-knee))       effective voltage
    g      = s_fixed + (1-s_fixed)*x*v^2
    P      = p_static + hm*u_mem + (d0 + dm*u_mem + dc*min(1, u_flop/u_sat))*g

Above the board's limit the GPU lowers its own clock until P fits; `capped` finds where it ends up.
"""

from bisect import bisect_left
from collections.abc import Sequence

from joulegate.domain import Batch
from joulegate.engine_profile import EngineProfile
from joulegate.units import Seconds, Watts

TDP_STEP = 0.0075  # share of f_max by which a power-capped GPU lowers its clock (engine-profile/1)


class PhysicsModel:
    """`EngineModel` by formula. Seconds and watts per GPU; what a clock does to the constants is kept."""

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self.clocks = profile.clocks
        self.idle_watts = Watts(profile.power.p_idle_w)
        self._pads = padding(profile.graph_batches)
        c = profile.latency
        self._memory, self._p, self._root = c.m0_s**c.p, c.p, 1.0 / c.p
        self._linear = c.m1_s_per_ctx_token, c.h0_s, c.h1_s_per_seq, c.h2_s_per_token
        self._clocked: dict[float, tuple[float, float, float, float]] = {}

    def iteration_time(self, batch: Batch, clock: float) -> Seconds:
        """Seconds one iteration takes at `clock` MHz, the board's power limit ignored."""
        floor, each, token, attention = self._clocked.get(clock) or self._at(clock)
        reads, host, sequence, any_token = self._linear
        b, n = batch.decoding, batch.prefill_tokens
        pads = self._pads
        compute = floor + each * (pads[b] if b < len(pads) else b) + token * n
        gemm = (self._memory + compute**self._p) ** self._root
        rest = reads * batch.context_tokens + attention * batch.prefill_attention
        seconds: Seconds = gemm + rest + host + sequence * b + any_token * (b + n)
        return seconds

    def _at(self, clock: float) -> tuple[float, float, float, float]:
        """c0, c1, pc1 and pc2 at a clock."""
        c, x = self.profile.latency, clock / self.profile.max_clock
        terms = c.c0_s / x, c.c1_s_per_seq / x, c.pc1_s_per_token / x, c.pc2_s_per_token2 / x
        self._clocked[clock] = terms
        return terms

    def watts(self, batch: Batch, clock: float) -> Watts:
        """Watts per GPU while that iteration runs, the board's power limit ignored."""
        return self._watts(batch, clock, self.iteration_time(batch, clock))

    def capped(self, batch: Batch, clock: float) -> tuple[float, Seconds, Watts]:
        """(clock in MHz the board's power limit allows, seconds, watts) of one iteration."""
        power, lowest = self.profile.power, self.profile.clocks[0]
        step = TDP_STEP * self.profile.max_clock
        while True:
            t = self.iteration_time(batch, clock)
            watts = self._watts(batch, clock, t)
            if watts <= power.tdp_w or clock <= lowest:
                return clock, t, watts
            clock = max(float(lowest), clock - step)

    def padded(self, decoding: int) -> int:
        """The batch the decode GEMMs run at: the next CUDA graph size, or the batch itself above the last."""
        return self._pads[decoding] if decoding < len(self._pads) else decoding

    def _watts(self, batch: Batch, clock: float, t: float) -> Watts:
        c = self.profile.power
        x = clock / self.profile.max_clock
        u_mem = (c.us_w_s + c.us_kv_s * batch.context_tokens) / t
        tokens = batch.decoding + batch.prefill_tokens
        u_flop = (c.us_tok_s * tokens + c.us_att_s * batch.prefill_attention) / (x * t)
        v = max(c.vmin, 1.0 - (1.0 - c.vmin) * (1.0 - x) / (1.0 - c.knee))
        g = c.s_fixed_share + (1.0 - c.s_fixed_share) * x * v * v
        dynamic = c.d0_w + c.dm_w * u_mem + c.dc_w * min(1.0, u_flop / c.u_sat)
        return Watts(c.p_static_w + c.hm_w * u_mem + dynamic * g)


def padding(graph_batches: Sequence[int]) -> list[int]:
    """The CUDA graph size that each batch up to the largest runs at, by batch."""
    last = graph_batches[-1] if graph_batches else 0
    return [0] + [graph_batches[bisect_left(graph_batches, b)] for b in range(1, last + 1)]
