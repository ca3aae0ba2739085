"""Pure: what a replay found: latencies, attainment per input class, and whether every answer was whole."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from joulegate.domain import Cuts, Objectives
from simulator.histogram import Histogram

CLASSES = ("S", "M", "L")
ITL_BOUNDS = tuple(0.0001 * 1.02**k for k in range(680))  # 0.1 ms to 69 s, 2 % wide


class Engine(Enum):
    """How the true output length travels: in a header that only emulated engines read, or forced."""

    EMULATED = "emulated"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class Answer:
    """One request that has ended. Times are seconds from when it was due; NaN if it never came so far."""

    input_tokens: int  # as the trace says
    wanted: int  # output tokens, as the trace says
    ttft: float
    e2e: float
    tokens: int  # output tokens, by usage where it was sent
    prompt_tokens: int  # by usage; 0: not sent
    exact: bool  # usage was sent, adds up, and is what was wanted
    id: str  # of the body; empty: none came
    error: str = ""  # why it is no answer

    @property
    def tpot(self) -> float | None:
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


@dataclass(slots=True)
class Tally:
    """Answers of one target as they come."""

    answers: list[Answer] = field(default_factory=list)
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BOUNDS))
    sent: int = 0

    @property
    def errors(self) -> int:
        return sum(1 for answer in self.answers if answer.error)


def summary(tally: Tally, objectives: Objectives, cuts: Cuts) -> dict[str, object]:
    """The JSON of a replay, less what only the sender knows."""
    answered = [answer for answer in tally.answers if not answer.error]
    ids = [answer.id for answer in answered if answer.id]
    return {
        "requests": tally.sent,
        "errors": tally.errors,
        "error_kinds": dict(Counter(answer.error for answer in tally.answers if answer.error)),
        "lost": tally.sent - len(tally.answers),
        "doubled": len(ids) - len(set(ids)),
        "usage_mismatches": sum(not answer.exact for answer in answered),
        "ttft_s": _quantiles([answer.ttft for answer in answered]),
        "tpot_s": _quantiles([tpot for answer in answered if (tpot := answer.tpot) is not None]),
        "itl_s": {name: tally.itl.quantile(share) for name, share in QUANTILES.items()},
        "e2e_s": _quantiles([answer.e2e for answer in answered]),
        "ttft_s_by_class": {
            name: _quantiles([a.ttft for a in answered if cuts.input_size(a.input_tokens) == size])
            for size, name in enumerate(CLASSES)
        },
        "attainment_pct": attainment(tally, objectives, cuts),
        "input_tokens": sum(answer.prompt_tokens for answer in answered),
        "output_tokens": sum(answer.tokens for answer in answered),
    }


QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def _quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Nearest rank; None where there is nothing."""
    ordered = sorted(values)
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
        for name, share in QUANTILES.items()
    }


def attainment(tally: Tally, objectives: Objectives, cuts: Cuts) -> dict[str, float | None]:
    """Percent of requests that met TTFT and TPOT, by input class and over all. An error is a miss."""
    met, sent = [0, 0, 0], [0, 0, 0]
    for answer in tally.answers:
        size = cuts.input_size(answer.input_tokens)
        sent[size] += 1
        met[size] += _meets(answer, objectives, objectives.ttft[size])
    lost = tally.sent - len(tally.answers)
    shares: dict[str, float | None] = {
        name: 100.0 * met[size] / sent[size] if sent[size] else None for size, name in enumerate(CLASSES)
    }
    return shares | {"all": 100.0 * sum(met) / (sum(sent) + lost) if tally.sent else None}


def _meets(answer: Answer, objectives: Objectives, ttft: float) -> bool:
    if answer.error or answer.ttft > ttft:
        return False
    tpot = answer.tpot
    in_time = objectives.e2e is None or answer.e2e <= objectives.e2e
    return in_time and (tpot is None or tpot <= objectives.tpot)
