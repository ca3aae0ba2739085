"""Pure: has a model been swapped behind its name? Page-Hinkley's test on its losses.

E. S. Page, "Continuous inspection schemes", Biometrika 1954: sum what exceeds the running mean by more than a
slack; a sum far above its own minimum says that the mean has moved.
"""

from dataclasses import dataclass, field

WARM = 60  # completions before a change may be called


@dataclass(slots=True)
class PageHinkley:
    """One-sided test: has the mean of what it is shown risen?"""

    slack: float
    threshold: float
    count: int = 0
    mean: float = 0.0
    total: float = 0.0

    def risen(self, value: float) -> bool:
        self.count += 1
        if self.count > WARM:
            self.total = max(0.0, self.total + value - self.mean - self.slack)
        if self.total > self.threshold:
            return True
        self.mean += (value - self.mean) / min(self.count, 2_000)
        return False


@dataclass(slots=True)
class Drift:
    """Three tests: the class log-loss rises; answers become longer, or shorter, than their median said."""

    loss: PageHinkley = field(default_factory=lambda: PageHinkley(0.5, 40.0))
    longer: PageHinkley = field(default_factory=lambda: PageHinkley(0.5, 40.0))
    shorter: PageHinkley = field(default_factory=lambda: PageHinkley(0.5, 40.0))

    def changed(self, loss: float, miss: float) -> bool:
        """One completion: log-loss of its class in nats, log tokens above the predicted median."""
        loss_rose, longer, shorter = self.loss.risen(loss), self.longer.risen(miss), self.shorter.risen(-miss)
        return loss_rose or longer or shorter
