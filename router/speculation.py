"""Pure: how many tokens a sequence gets in one step of an engine that decodes speculatively.

Theory of operation. Every step gives a sequence one token and those of its draft that were accepted, so of G
generated tokens G - A took a step of their own, A being accepted: G / (G - A) tokens a step. Where every step
has a draft that is 1 + accepted / drafts, what the reference asks for; where some have none (n-grams that
match nothing) it counts them, too. Counters of the last MEMORY tokens or so weigh; the answer moves by whole
GRAINs, so that what is worked out from it need not be worked out again for nothing.

Missing input: an engine that does not count drafts gets one token a step. A counter that fell is another
process: counted anew.
"""

from dataclasses import dataclass

from router.engine_metrics import Gauges

MEMORY = 4096.0  # tokens
KNOWN = 256.0  # tokens before which one a step is assumed
GRAIN = 0.05
MOST = 32.0  # no engine drafts more


@dataclass(slots=True)
class Speculation:
    """Of one instance."""

    per_step: float = 1.0
    _generated: float = 0.0  # counters, as last read
    _accepted: float = 0.0
    _tokens: float = 0.0  # of the memory
    _steps: float = 0.0

    def hear(self, gauges: Gauges) -> float:
        """Tokens per step and sequence, with what its metrics page says now."""
        generated, accepted = gauges.generated, gauges.accepted
        if generated is None or accepted is None:
            return self.per_step
        more, drafted = generated - self._generated, accepted - self._accepted
        if more < 0.0 or drafted < 0.0:
            more, drafted, self._tokens, self._steps = generated, accepted, 0.0, 0.0
        self._generated, self._accepted = generated, accepted
        if more > drafted:
            kept = MEMORY / (MEMORY + more)
            self._tokens = kept * (self._tokens + more)
            self._steps = kept * (self._steps + more - drafted)
        if generated >= KNOWN and self._steps > 0.0:
            self.per_step = min(MOST, max(1.0, round(self._tokens / self._steps / GRAIN) * GRAIN))
        return self.per_step
