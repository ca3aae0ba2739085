"""Pure: weeks of arrivals with a daily and weekly rhythm, noise, and a surprise in the last week."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from predictor.forecast import DAY, WEEK, Floats


@dataclass(frozen=True, slots=True)
class Weeks:
    arrivals: Floats  # seconds from Monday 00:00, ascending
    tokens_in: NDArray[np.int64]
    tokens_out: NDArray[np.int64]


def synthetic_weeks(rng: np.random.Generator, weeks: int, requests_per_s: float) -> Weeks:
    """Poisson arrivals; quiet nights, weekends at half, days that differ by 10 %, growth of 5 % a week.

    The surprise: Thursday of the last week, 10:00 to 13:00, twice the load, the extra half with long answers.
    """
    minutes = int(weeks * WEEK / 60)
    at = np.arange(minutes) * 60.0
    day = (at // DAY).astype(np.int64)
    rhythm = 0.625 + 0.375 * np.sin(2 * np.pi * (at % DAY) / DAY - 2.1)
    weekend = np.where(day % 7 >= 5, 0.5, 1.0)
    moods = rng.lognormal(0.0, 0.1, day.max() + 1)[day]
    growth = 1.05 ** (at / WEEK)
    rate = requests_per_s * rhythm * weekend * moods * growth
    thursday = (weeks - 1) * WEEK + 3 * DAY + 36_000.0
    surprise = (at >= thursday) & (at < thursday + 10_800.0)
    usual, extra = rng.poisson(60.0 * rate), np.where(surprise, rng.poisson(60.0 * rate), 0)
    minute = np.repeat(np.arange(minutes), usual + extra)
    arrivals = np.sort(minute * 60.0 + rng.random(len(minute)) * 60.0)
    tokens_in = np.exp(rng.normal(6.3, 1.1, len(arrivals))).astype(np.int64) + 1
    tokens_out = np.exp(rng.normal(5.1, 0.9, len(arrivals))).astype(np.int64) + 1
    burst = (arrivals >= thursday) & (arrivals < thursday + 10_800.0) & (rng.random(len(arrivals)) < 0.5)
    return Weeks(arrivals, tokens_in, np.where(burst, tokens_out + 600, tokens_out))
