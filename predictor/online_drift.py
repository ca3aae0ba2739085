"""Pure: notice that an engine is no longer the one its model learned, and say when to learn it anew.

Two one-sided cumulative sums (Page 1954) of log(observed / predicted): noise and small errors stay below the
allowance and drain the sums; a lasting change fills one of them until it passes the threshold.
"""

from dataclasses import dataclass
from enum import Enum
from math import isfinite, log

from joulegate.units import Seconds


class Drift(Enum):
    NONE = "none"
    SLOWER = "slower"
    FASTER = "faster"


class RefitReason(Enum):
    DRIFT = "drift"  # predictions are wrong and stay wrong
    OUTSIDE = "outside"  # the work left the range the model was trained on


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """Observations as they come, about four a second per instance."""

    allowance: float = 0.05  # log error that is nobody's fault
    threshold: float = 5.0  # 20 % slower passes it after about 40 observations
    outlier: float = 0.7  # log error one observation counts at most
    refit_interval: Seconds = Seconds(300.0)  # between two refits of one instance
    refit_samples: int = 16  # kept samples a refit needs: steady traffic gives few that differ
    outside_share: float = 0.2  # of recent observations out of the trained range


class DriftDetector:
    """One per instance; fed with the model's own prediction, uncorrected."""

    def __init__(self, settings: DriftSettings) -> None:
        self.settings = settings
        self._slower = self._faster = 0.0
        self._slower_since = self._faster_since = Seconds(0.0)

    @property
    def drift(self) -> Drift:
        if self._slower >= self.settings.threshold:
            return Drift.SLOWER
        if self._faster >= self.settings.threshold:
            return Drift.FASTER
        return Drift.NONE

    @property
    def since(self) -> Seconds:
        """When the engine changed, as far as can be told: the last time the larger sum was empty."""
        return self._slower_since if self._slower >= self._faster else self._faster_since

    def observe(self, predicted: Seconds, observed: Seconds, now: Seconds) -> Drift:
        """Count one pair. Raises ValueError for a time that is not positive and finite."""
        if not (isfinite(predicted) and isfinite(observed) and predicted > 0.0 and observed > 0.0):
            raise ValueError(f"predicted {predicted} s, observed {observed} s: both must be positive")
        settings = self.settings
        error = min(settings.outlier, max(-settings.outlier, log(observed / predicted)))
        ceiling = 2.0 * settings.threshold  # so that a long drift is forgotten as fast as it came
        if self._slower == 0.0:
            self._slower_since = now
        if self._faster == 0.0:
            self._faster_since = now
        self._slower = min(ceiling, max(0.0, self._slower + error - settings.allowance))
        self._faster = min(ceiling, max(0.0, self._faster - error - settings.allowance))
        return self.drift

    def reset(self) -> None:
        self._slower = self._faster = 0.0


def refit_reason(
    drift: Drift, outside_share: float, samples: int, since_last: Seconds, settings: DriftSettings
) -> RefitReason | None:
    """Why to learn the engine anew now; None: do not, or not yet."""
    if samples < settings.refit_samples or since_last < settings.refit_interval:
        return None
    if drift is not Drift.NONE:
        return RefitReason.DRIFT
    return RefitReason.OUTSIDE if outside_share > settings.outside_share else None
