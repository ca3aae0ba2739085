"""Pure: has a model been swapped behind its name? Page-Hinkley's test on its losses.

E. S. Page, "Continuous inspection schemes", Biometrika 1954: sum what exceeds the running mean by more than a
slack; a sum far above its own minimum says that the mean has moved. In running standard deviations, so that
a model whose answers vary wildly does not look like another one every day. A sum half-way there is doubt: it
costs little, for the level of the line is let go (`experts_rls`) and nothing is forgotten.
"""

from dataclasses import dataclass, field
from math import sqrt

WARM = 60  # completions before a change may be called
MEMORY = 2_000  # completions that mean and deviation are of
SLACK = 0.6  # deviations
DOUBT = 8.0  # deviations from which on a change may be under way
THRESHOLD = 15.0  # deviations: an hour of real traffic, which comes in bursts of a kind, stays below it
FAR = 2.0  # deviations that one completion counts at most: a swap lasts, a burst of odd requests does not
ODD_SQUARED = 3.0**2  # variances: what is further off counts as so much in the variance
LEAST = 0.01  # of the variance, in nats or log tokens squared: answers all alike still vary so much


@dataclass(slots=True)
class PageHinkley:
    """One-sided test: has the mean of what it is shown risen?"""

    count: int = 0
    mean: float = 0.0
    variance: float = 1.0
    total: float = 0.0

    def risen(self, value: float) -> bool:
        self.count += 1
        off = value - self.mean
        if self.count > WARM:
            far = off / sqrt(self.variance)
            total = self.total + (far if far < FAR else FAR) - SLACK
            self.total = total if total > 0.0 else 0.0
            if total > THRESHOLD:
                return True
        gain = 1.0 / (self.count if self.count < MEMORY else MEMORY)
        self.mean += gain * off
        if self.count > 1:
            variance, square = self.variance, off * off
            most = ODD_SQUARED * variance
            variance += gain * ((square if square < most else most) - variance)
            self.variance = variance if variance > LEAST else LEAST
        return False


@dataclass(slots=True)
class Drift:
    """Three tests: the class log-loss rises; answers become longer, or shorter, than their median said."""

    loss: PageHinkley = field(default_factory=PageHinkley)
    longer: PageHinkley = field(default_factory=PageHinkley)
    shorter: PageHinkley = field(default_factory=PageHinkley)

    @property
    def doubtful(self) -> bool:
        """Answers seem to have changed; most often they have not."""
        return self.loss.total > DOUBT or self.longer.total > DOUBT or self.shorter.total > DOUBT

    def changed(self, loss: float, miss: float) -> bool:
        """One completion: log-loss of its class in nats, log tokens above the predicted median."""
        loss_rose, longer, shorter = self.loss.risen(loss), self.longer.risen(miss), self.shorter.risen(-miss)
        return loss_rose or longer or shorter
