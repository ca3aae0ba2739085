"""Pure: how full a pool is at maximum clock, and how many instances its load asks for (for KEDA or an HPA).

Running requests alone mislead behind a gateway that lowers clocks: batches grow because clocks fall. So load
is held against what the instances could carry at *maximum* clock with every objective kept, which is the
governor's `at_max` headroom; without a model it is the number of slots.
"""

from collections.abc import Sequence
from math import ceil

from control.state import Instance

FULL = 0.8  # share of capacity that a pool should run at


def used_ratio(instances: Sequence[Instance], queued: int) -> float:
    """Requests running and queued, over what the ready instances carry; above 1 the pool is overloaded."""
    carried = sum(_capacity(i) for i in instances if i.ready)
    load = queued + sum(_running(i) for i in instances)
    if carried <= 0:
        return float(load > 0)
    return load / carried


def desired_replicas(instances: Sequence[Instance], queued: int) -> int:
    """Instances of this kind that would run the present load at FULL; at least one.

    One too while none is ready: what its load asks for is seen once one serves.
    """
    ready = sum(i.ready for i in instances)
    return max(1, ceil(ready * used_ratio(instances, queued) / FULL - 1e-9))


def present(instances: Sequence[Instance], queued: int) -> int:
    """Instances that what is there asks for; none if nothing is."""
    busy = queued > 0 or any(_running(i) for i in instances)
    return desired_replicas(instances, queued) if busy else 0


def _running(instance: Instance) -> int:
    """What other gateways sent there too, where the engine or they say so."""
    return max(instance.book.running, instance.gauges.running if instance.gauges is not None else 0)


def _capacity(instance: Instance) -> int:
    room = instance.at_max.decoding
    return min(room, instance.slots) if room > 0 else instance.slots
