"""Pure: how well lengths are predicted, prequentially: a stream in order, predict, then observe."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from joulegate.domain import Cuts, LengthPredictor, LengthQuery
from predictor.experts import pinball
from predictor.length import chosen_size

BINS = 10
WARM = 100  # completions of a stream after which it counts as warm
COLD = 50  # completions of a stream that count as its start


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and how long its answer was, in tokens."""

    query: LengthQuery
    output_tokens: int
    at: float = 0.0  # seconds, in a trace


@dataclass(frozen=True, slots=True)
class StreamName:
    """Streams are judged by source; a source may hold several models."""

    source: str
    model: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One prediction beside the truth."""

    place: int  # in its stream
    actual: int  # size
    chosen: int  # size
    majority: int  # size most common in this stream so far
    classes: tuple[float, float, float]
    q50: float
    q90: float
    output_tokens: int
    predict_seconds: float
    update_seconds: float


def prequential(
    samples: Iterable[Sample],
    predictor: LengthPredictor,
    cuts: Cuts,
    under_cost: float | None,
    clock: Callable[[], float],
) -> list[Judged]:
    """Run one stream. `under_cost` None: the most probable class; else the class of least expected cost."""
    counts = [0, 0, 0]
    out = []
    for place, sample in enumerate(samples):
        begin = clock()
        prediction = predictor.predict(sample.query)
        predicted = clock()
        predictor.observe(sample.query, prediction, sample.output_tokens)
        updated = clock()
        actual = int(cuts.output_size(sample.output_tokens))
        classes = prediction.classes
        chosen = classes.index(max(classes)) if under_cost is None else chosen_size(prediction, under_cost)
        out.append(
            Judged(
                place,
                actual,
                chosen,
                counts.index(max(counts)),
                classes,
                prediction.q50,
                prediction.q90,
                sample.output_tokens,
                predicted - begin,
                updated - predicted,
            )
        )
        counts[actual] += 1
    return out


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about one probability: mean of what was said, share that came, how many."""

    said: float
    came: float
    n: int


@dataclass(frozen=True, slots=True)
class Report:
    """The figures of one evaluation. Ratios, points (percentage points), tokens and microseconds by name."""

    n: int
    accuracy: float
    macro_f1: float
    accuracy_second_half: float
    macro_f1_second_half: float
    accuracy_after_100: float | None
    macro_f1_after_100: float | None
    accuracy_after_100_by_source: dict[str, float]
    first50_minus_majority: dict[str, float]
    p_actual_over_q90: dict[str, float]
    pinball_q90: float | None
    pinball_q90_by_source: dict[str, float]
    kendall_tau_after_100: float | None
    under_prediction_rate: float
    predict_us_p50: float
    predict_us_p99: float
    update_us_p99: float
    calibration: list[Bin]


def report(streams: Mapping[StreamName, Sequence[Judged]]) -> Report:
    """Every figure of `evaluate length`; raises ValueError when there is nothing to judge."""
    everything = [judged for stream in streams.values() for judged in stream]
    if not everything:
        raise ValueError("nothing to judge")
    warm = [judged for judged in everything if judged.place >= WARM]
    late = [judged for stream in streams.values() for judged in stream[len(stream) // 2 :]]
    sources: dict[str, list[Judged]] = defaultdict(list)
    for name, stream in streams.items():
        sources[name.source].extend(stream)
    warm_sources = {s: [j for j in judged if j.place >= WARM] for s, judged in sources.items()}
    warm_sources = {s: judged for s, judged in warm_sources.items() if judged}
    predict = np.array([judged.predict_seconds for judged in everything]) * 1e6
    update = np.array([judged.update_seconds for judged in everything]) * 1e6
    return Report(
        n=len(everything),
        accuracy=_accuracy(everything),
        macro_f1=_macro_f1(everything),
        accuracy_second_half=_accuracy(late),
        macro_f1_second_half=_macro_f1(late),
        accuracy_after_100=_accuracy(warm) if warm else None,
        macro_f1_after_100=_macro_f1(warm) if warm else None,
        accuracy_after_100_by_source={s: _accuracy(judged) for s, judged in warm_sources.items()},
        first50_minus_majority={s: _head_start(judged) for s, judged in sources.items()},
        p_actual_over_q90={s: _over(judged) for s, judged in warm_sources.items()},
        pinball_q90=_pinball(warm) if warm else None,
        pinball_q90_by_source={s: _pinball(judged) for s, judged in warm_sources.items()},
        kendall_tau_after_100=_tau(warm) if len(warm) > 1 else None,
        under_prediction_rate=sum(j.chosen < j.actual for j in everything) / len(everything),
        predict_us_p50=float(np.percentile(predict, 50)),
        predict_us_p99=float(np.percentile(predict, 99)),
        update_us_p99=float(np.percentile(update, 99)),
        calibration=_calibration(everything),
    )


def _accuracy(judged: Sequence[Judged]) -> float:
    return sum(j.actual == j.chosen for j in judged) / len(judged)


def _macro_f1(judged: Sequence[Judged]) -> float:
    """Unweighted mean over the classes that occur; a class predicted but absent counts 0."""
    confusion = np.zeros((3, 3))
    for j in judged:
        confusion[j.actual, j.chosen] += 1
    size = confusion.sum(0) + confusion.sum(1)
    present = size > 0
    return float((2.0 * confusion.diagonal()[present] / size[present]).mean())


def _head_start(judged: Sequence[Judged]) -> float:
    """Percentage points above majority-so-far in the first completions of the streams."""
    cold = [j for j in judged if j.place < COLD]
    gained = sum((j.actual == j.chosen) - (j.actual == j.majority) for j in cold)
    return 100.0 * gained / len(cold)


def _over(judged: Sequence[Judged]) -> float:
    return sum(j.output_tokens > j.q90 for j in judged) / len(judged)


def _pinball(judged: Sequence[Judged]) -> float:
    return sum(pinball(0.9, j.output_tokens, j.q90) for j in judged) / len(judged)


def _tau(judged: Sequence[Judged]) -> float | None:
    tau = float(kendalltau([j.q50 for j in judged], [j.output_tokens for j in judged]).statistic)
    return None if np.isnan(tau) else tau


def _calibration(judged: Sequence[Judged]) -> list[Bin]:
    """All three classes of every prediction, by the probability they were given."""
    said: list[list[float]] = [[] for _ in range(BINS)]
    came = [0] * BINS
    for j in judged:
        for size, probability in enumerate(j.classes):
            place = min(int(probability * BINS), BINS - 1)
            said[place].append(probability)
            came[place] += j.actual == size
    return [
        Bin(sum(given) / len(given), happened / len(given), len(given))
        for given, happened in zip(said, came, strict=True)
        if given
    ]
