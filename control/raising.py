"""Pure: a prompt waits for the clock it needs, where that is sooner than being read at the one in force.

Theory of operation. A new clock acts on the first iteration that starts some 25 ms later, and an engine that
reads no prompt takes one at once. So the first prompt after a pause would be read at the slow clock of the
pause, in an iteration that nothing interrupts: whoever comes meanwhile waits for its end, too. Where reading
it at maximum clock saves GAIN times the switch, it waits in the gateway until the clock was raised and is in
force.

Missing input: without a model, a ceiling in force or a decision there is no better clock to wait for. If
nobody raises, it waits no longer than PATIENCE beyond the switch. A TTFT objective to which all that is
nothing (LITTLE of it) is none to wait for.
"""

from control.projection import Load, Pace
from control.state import Flight, Instance
from joulegate.units import MegaHertz, Seconds

GAIN = 1.5
PATIENCE = 0.02  # seconds
LITTLE = 0.01


def waits_for_clock(flight: Flight, queued: float, instance: Instance, now: Seconds) -> bool:
    """`queued`: prompt tokens that wait for this instance: its share of the pool's, `flight` included."""
    switch, slow = instance.rise_takes, instance.raised_from
    if switch is None or instance.book.prompts or now > flight.arrived + switch + PATIENCE:
        return False
    if slow is not None and now < instance.raised_at + switch:
        return _pays(flight, instance, slow, switch)
    asked = instance.at_clock.at >= flight.arrived
    if asked or instance.clock is None or queued <= instance.at_clock.prompt_tokens:
        return False
    return _pays(flight, instance, instance.clock, switch)


def _pays(flight: Flight, instance: Instance, slow: MegaHertz, switch: Seconds) -> bool:
    model, book, chunk = instance.model, instance.book, instance.limits.chunk_budget
    if model is None:
        return False
    tokens, top = min(flight.uncached_tokens, chunk), model.clocks[-1]
    load = Load(book.decoding, book.context, tokens, chunk)
    reading, best = (Pace(model, load, at, instance.factor(at)).iteration(tokens) for at in (slow, top))
    return reading - best > max(GAIN * switch, LITTLE * flight.ttft)
