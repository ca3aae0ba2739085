"""Pure: which instance made which response.

An engine keeps the responses it made and knows no others: what refers to one (reading, deleting or cancelling
it, going on from it) has to go where it was made. The latest are remembered, also those made through other
replicas, which tell each other; of any other nobody can say.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Iterable

ROUTE = "/v1/responses"
MAX_RESPONSES = 20_000
MAX_UNTOLD = 2000  # between two exchanges with the other replicas
HEAD_BYTES = 4096  # of an answer: its id stands at its head
# a whole answer, or the event that says it was created
ID = re.compile(rb'(?:\A|"response"\s*:)\s*\{\s*"id"\s*:\s*"([\w.-]{1,128})"')


class Makers:
    """Response -> name of the instance that made it; beyond `most`, what was longest unused is forgotten."""

    __slots__ = ("_instances", "_most", "_untold")

    def __init__(self, most: int = MAX_RESPONSES) -> None:
        self._instances: OrderedDict[str, str] = OrderedDict()
        self._untold: deque[tuple[str, str]] = deque(maxlen=MAX_UNTOLD)
        self._most = most

    def __len__(self) -> int:
        return len(self._instances)

    def made(self, response: str, instance: str) -> None:
        """Through this replica."""
        self._untold.append((response, instance))
        self._remember(response, instance)

    def tell(self) -> list[tuple[str, str]]:
        """What the other replicas have not been told yet."""
        untold = list(self._untold)
        self._untold.clear()
        return untold

    def hear(self, made: Iterable[tuple[str, str]]) -> None:
        """Made through other replicas."""
        for response, instance in made:
            self._remember(response, instance)

    def _remember(self, response: str, instance: str) -> None:
        self._instances[response] = instance
        self._instances.move_to_end(response)
        if len(self._instances) > self._most:
            self._instances.popitem(last=False)

    def of(self, response: str) -> str:
        """ "" for one that is not known."""
        instance = self._instances.get(response, "")
        if instance:
            self._instances.move_to_end(response)
        return instance


def referred(route: str, previous: str) -> str:
    """The response that a request for `route` (canonical) is about; "": none. `previous`: by its body."""
    _, named, rest = route.partition(ROUTE + "/")
    return rest.partition("/")[0] if named else previous


def response_id(head: bytes) -> str:
    """The id in the first bytes of an answer, whole or streamed; "": not there (yet)."""
    found = ID.search(head)
    return found[1].decode() if found is not None else ""
