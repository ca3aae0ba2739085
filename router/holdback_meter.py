"""Pure: one instance's blocks of the holdback: is it held back now, and what did each block take."""

from collections import deque
from dataclasses import dataclass, field

from control.holdback import Block, HoldbackRules, is_held, number, settled
from joulegate.units import Joules, Seconds

KEPT = 5000  # blocks of an instance: a day and a half of half minutes
PROMPT_WORK = 0.1  # of an output token, for a prompt token


@dataclass(slots=True, eq=False)
class HoldbackMeter:
    """`work` grows as tokens come out; `tick` closes blocks."""

    instance: str
    rules: HoldbackRules
    held: bool = False  # now
    work: float = 0.0  # weighted tokens since the last tick
    blocks: deque[Block] = field(default_factory=lambda: deque(maxlen=KEPT))
    _block: int = -1
    _seconds: float = 0.0
    _joules: float = 0.0
    _work: float = 0.0
    _ticked: float = 0.0

    def did(self, prompt_tokens: float, output_tokens: float) -> None:
        self.work += PROMPT_WORK * prompt_tokens + output_tokens

    def tick(self, joules: Joules, acts: bool, now: Seconds) -> None:
        """`joules` were drawn since the last tick. `acts`: clocks are set here; else no block counts."""
        block = number(self.rules, now)
        if block != self._block:
            self._close(acts)
            self._block = block
            self.held = acts and is_held(self.rules, self.instance, block)
        elif settled(self.rules, now) and self._ticked:
            self._seconds += now - self._ticked
            self._joules += joules
            self._work += self.work
        self.work, self._ticked = 0.0, now

    def _close(self, acts: bool) -> None:
        if acts and self._seconds >= 0.5 * (self.rules.block - self.rules.settle):
            block = Block(self.held, Seconds(self._seconds), Joules(self._joules), self._work)
            self.blocks.append(block)
        self._seconds = self._joules = self._work = 0.0
