"""Pure: which request bodies took engines down, so that one query of death harms at most two instances."""

from collections import OrderedDict

from joulegate.units import Seconds

REMEMBERED = Seconds(60.0)
MAX_BODIES = 1000
CONDEMNED_AFTER = 2  # instances


class Deaths:
    """Instances lost while a body was in flight there, unanswered, by the body's fingerprint."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[int, tuple[Seconds, frozenset[str]]] = OrderedDict()

    def add(self, fingerprint: int, instance: str, now: Seconds) -> None:
        known = self._lost(fingerprint, now)
        self._bodies[fingerprint] = (now, known | {instance})
        self._bodies.move_to_end(fingerprint)
        if len(self._bodies) > MAX_BODIES:
            self._bodies.popitem(last=False)

    def suspects(self, fingerprint: int, now: Seconds) -> bool:
        """A second instance is not risked where one retry has been lost already."""
        return len(self._lost(fingerprint, now)) >= CONDEMNED_AFTER

    def condemned(self, fingerprint: int, now: Seconds) -> bool:
        return bool(self._bodies) and self.suspects(fingerprint, now)

    def _lost(self, fingerprint: int, now: Seconds) -> frozenset[str]:
        when, instances = self._bodies.get(fingerprint, (now, frozenset[str]()))
        return instances if now - when <= REMEMBERED else frozenset()
