"""Pure: which request bodies took engines down, so that one query of death harms at most two instances,
whichever replica it comes through.

Whoever is in flight when an engine dies is a suspect, first token or not. A body that was answered of late is
none: engines that are killed from outside take down what everybody asks, too.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from joulegate.units import Seconds

REMEMBERED = Seconds(60.0)
MAX_BODIES = 1000
MAX_TOLD = 100
CONDEMNED_AFTER = 2  # instances


class Deaths:
    """Instances lost while a body was in flight there, by the body's fingerprint."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[int, tuple[Seconds, frozenset[str]]] = OrderedDict()
        self._harmless: OrderedDict[int, None] = OrderedDict()
        self._heard: dict[int, frozenset[str]] = {}  # what other replicas have lost

    def answered(self, fingerprint: int) -> None:
        """An engine has lived through this body."""
        self._bodies.pop(fingerprint, None)
        self._harmless[fingerprint] = None
        self._harmless.move_to_end(fingerprint)
        if len(self._harmless) > MAX_BODIES:
            self._harmless.popitem(last=False)

    def add(self, fingerprint: int, instance: str, now: Seconds) -> None:
        if fingerprint in self._harmless:
            return
        known = self._lost_here(fingerprint, now)
        self._bodies[fingerprint] = (now, known | {instance})
        self._bodies.move_to_end(fingerprint)
        if len(self._bodies) > MAX_BODIES:
            self._bodies.popitem(last=False)

    def tell(self, now: Seconds) -> dict[int, frozenset[str]]:
        """The newest of what was lost here."""
        newest = list(self._bodies)[-MAX_TOLD:]
        return {body: lost for body in newest if (lost := self._lost_here(body, now))}

    def hear(self, told: Iterable[Mapping[int, frozenset[str]]]) -> None:
        """What every other replica tells now."""
        self._heard = {}
        for each in told:
            for body, lost in each.items():
                if body not in self._harmless:
                    self._heard[body] = self._heard.get(body, frozenset()) | lost

    def suspects(self, fingerprint: int, now: Seconds) -> bool:
        """A second instance is not risked where one retry has been lost already."""
        return len(self._lost(fingerprint, now)) >= CONDEMNED_AFTER

    def condemned(self, fingerprint: int, now: Seconds) -> bool:
        return bool(self._bodies or self._heard) and self.suspects(fingerprint, now)

    def _lost(self, fingerprint: int, now: Seconds) -> frozenset[str]:
        return self._lost_here(fingerprint, now) | self._heard.get(fingerprint, frozenset())

    def _lost_here(self, fingerprint: int, now: Seconds) -> frozenset[str]:
        when, instances = self._bodies.get(fingerprint, (now, frozenset[str]()))
        return instances if now - when <= REMEMBERED else frozenset()
