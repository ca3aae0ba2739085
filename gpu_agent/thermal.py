"""Pure: a GPU's temperature, learned from what it draws.

    T' = a*P - g*T + c        (a in K/J, g in 1/s, c in K/s)

A first-order model: air and heat sink as one body. The three numbers are fitted by recursive least squares
over steps of some seconds, with old steps forgotten slowly, since fans and rooms change:

    T1 - T0 = dt * (a*P_mean - g*(T0 + T1)/2 + c)
"""

from dataclasses import dataclass
from math import exp

from joulegate.units import Joules, Seconds, Watts

STEP = Seconds(5.0)  # shorter ones drown in the sensor's whole degrees
ENOUGH = 60  # steps before a forecast is worth showing
GAP = Seconds(4 * STEP)
FORGET = 0.995  # weight of a step after one more: about 200 steps count
PRIOR = (0.004, 0.05, 1.5)  # an air-cooled 700 W board; corrected within minutes
SCALE = (1.0 / 300.0, 1.0 / 50.0, 1.0)  # brings the three features to the same size
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]


@dataclass(frozen=True, slots=True)
class ThermalModel:
    """What has been learned; `steps` says from how much."""

    theta: Vector = (PRIOR[0] / SCALE[0], PRIOR[1] / SCALE[1], PRIOR[2] / SCALE[2])
    covariance: Matrix = ((10.0, 0.0, 0.0), (0.0, 10.0, 0.0), (0.0, 0.0, 10.0))
    steps: int = 0

    def ahead(self, celsius: float, watts: Watts, seconds: Seconds) -> float:
        """Temperature after `seconds` at `watts`."""
        a, g, c = (t * s for t, s in zip(self.theta, SCALE, strict=True))
        if g < 1e-6:
            return celsius + seconds * (a * watts + c)
        final = (a * watts + c) / g
        return final + (celsius - final) * exp(-g * seconds)


def learn(model: ThermalModel, before: float, after: float, watts: Watts, seconds: Seconds) -> ThermalModel:
    """One step of `seconds`: from `before` to `after` Celsius, drawing `watts` on average."""
    features = (watts * SCALE[0], -0.5 * (before + after) * SCALE[1], SCALE[2])
    error = (after - before) / seconds - _dot(model.theta, features)
    spread = _times(model.covariance, features)
    gain_denominator = FORGET + _dot(features, spread)
    gain = (spread[0] / gain_denominator, spread[1] / gain_denominator, spread[2] / gain_denominator)
    t, p = model.theta, model.covariance
    theta = (t[0] + gain[0] * error, t[1] + gain[1] * error, t[2] + gain[2] * error)
    rows = [[(p[i][j] - gain[i] * spread[j]) / FORGET for j in range(3)] for i in range(3)]
    covariance = ((rows[0][0], rows[0][1], rows[0][2]), (rows[1][0], rows[1][1], rows[1][2]),
                  (rows[2][0], rows[2][1], rows[2][2]))  # fmt: skip
    return ThermalModel(theta, covariance, model.steps + 1)


def _dot(x: Vector, y: Vector) -> float:
    return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]


def _times(matrix: Matrix, x: Vector) -> Vector:
    return _dot(matrix[0], x), _dot(matrix[1], x), _dot(matrix[2], x)


@dataclass(frozen=True, slots=True)
class Track:
    """A model and where its last step ended."""

    model: ThermalModel
    celsius: float
    joules: Joules
    at: Seconds


def follow(track: Track | None, celsius: float, joules: Joules, now: Seconds) -> Track:
    """Learn from readings as they come; a gap (nobody was reading) is not learned from."""
    if track is None:
        return Track(ThermalModel(), celsius, joules, now)
    seconds = Seconds(now - track.at)
    if seconds < STEP:
        return track
    if seconds > GAP:
        return Track(track.model, celsius, joules, now)
    watts = Watts((joules - track.joules) / seconds)
    return Track(learn(track.model, track.celsius, celsius, watts, seconds), celsius, joules, now)
