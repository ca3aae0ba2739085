"""Pure: what the planner is asked about one model: its pools' load to come, and what they could run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from control.floor import Demand
from control.lifecycle import Phase
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Question
from control.state import PoolRules
from joulegate.domain import EngineModel, RequestType, Size
from joulegate.units import Seconds, Watts
from predictor.forecast import Floats
from predictor.physics import PhysicsModel
from router.pools import Member, Model, Pool
from router.transitions import Transitions

TYPES = tuple(RequestType(i, o) for i in Size for o in Size)  # in the order of the load forecast
START = 60.0  # seconds, of an engine of which nothing is known
Rates = Sequence[float]  # requests, input tokens and output tokens per second


@dataclass(frozen=True, slots=True)
class Coming:
    """What a model's load is and may become."""

    mean: Mapping[RequestType, Rates]  # of the last epoch
    peak: Mapping[RequestType, Rates]  # the most to expect of the next
    bias: float  # output tokens that came over those predicted
    epoch: Seconds


class Living(Protocol):
    """What is known of instances that are stopped and started."""

    transitions: Transitions

    def phase(self, instance: str) -> Phase | None:
        """None: it always runs."""
        ...


def question_for(
    model: Model, coming: Coming, least: Callable[[Model, Pool], int], living: Living
) -> Question:
    """Pools without a latency model are left out."""
    needs = []
    for pool in model.pools.values():
        members = [member for member in model.members.values() if member.home == pool.name]
        stock = stock_of(members, living)
        if stock is not None:
            terms = (pool.mode, pool.static_clock, pool.home.shed, pool.power_priority)
            warm = min(least(model, pool), len(members))
            needs.append(need_of(pool.home, coming, stock, warm, terms))
    merged = {name: pool.host for name, pool in model.pools.items() if pool.host}
    return Question(tuple(needs), merged, coming.epoch, PlanRules())


def need_of(
    home: PoolRules, coming: Coming, stock: tuple[Stock, ...], least: int, terms: tuple[object, ...] = ()
) -> PoolNeed:
    """Of one pool as it is configured; `least` of its instances stay warm."""
    came, most = (_summed([each[kind] for kind in home.types]) for each in (coming.mean, coming.peak))
    demand = _demand(came if came[0] > 0.0 else most, coming.bias, coming.epoch)
    expected = 0.0 if demand is None else demand.rate * _growth(came, most)
    return PoolNeed(home.name, home.reach, home.objectives, demand, expected, least, stock, terms)


def by_type(rates: Floats) -> dict[RequestType, Rates]:
    """Those of the load forecast."""
    return dict(zip(TYPES, rates.tolist(), strict=True))


def _summed(rates: Sequence[Rates]) -> Rates:
    return [sum(each[i] for each in rates) for i in range(3)]


def _growth(mean: Rates, peak: Rates) -> float:
    """Of requests or of tokens, whichever grow most; at least 1."""
    return max([1.0, *(most / came for came, most in zip(mean, peak, strict=True) if came > 0.0)])


def _demand(rates: Rates, bias: float, epoch: Seconds) -> Demand | None:
    """None: less than one request in two epochs."""
    requests, tokens, output = rates
    if 2.0 * requests * epoch < 1.0:
        return None
    return Demand(requests, tokens / requests, tokens / requests, max(1.0, bias * output / requests))


def stock_of(members: Sequence[Member], living: Living) -> tuple[Stock, ...] | None:
    """By kind, in the order they are listed; None where one of them has no model."""
    kinds: dict[str, list[Member]] = {}
    for member in members:
        kinds.setdefault(member.kind, []).append(member)
    found = []
    for name, same in kinds.items():
        engine = next((m.law.model for m in same if m.law.model is not None), None)
        if engine is None:
            return None
        stopped = _stopped_watts(same, engine, living)
        start, watts = _start(same, engine, stopped, living)
        law = same[0].law
        found.append(
            Stock(
                Kind(name, engine, law.limits, law.tp, start, watts),
                have=len(same),
                up=sum(m.law.ready for m in same),
                stopped_watts=stopped,
                session_tokens=sum(sum(m.sessions.values()) for m in same) / len(same),
            )
        )
    return tuple(found)


def _start(
    members: Sequence[Member], engine: EngineModel, stopped: Watts, living: Living
) -> tuple[Seconds, Watts]:
    """How long a start takes and what a GPU draws meanwhile: as measured, else by profile."""
    usual = living.transitions.usual
    known = [usual[m.law.name, "start"] for m in members if (m.law.name, "start") in usual]
    profile = engine.profile if isinstance(engine, PhysicsModel) else None
    if known:
        seconds = sum(one[0] for one in known) / len(known)
    elif profile is not None:
        sleeps = members[0].sleeps
        seconds = profile.actuation.wake_s if sleeps else profile.actuation.instance_start_s
    else:
        seconds = START
    watts = [one[1] / one[0] / members[0].law.tp for one in known if one[1] is not None and one[0] > 0.0]
    if watts:
        return Seconds(seconds), Watts(sum(watts) / len(watts))
    drawn = engine.idle_watts if profile is None else profile.power.p_start_w
    return Seconds(seconds), Watts(max(drawn, stopped))


def _stopped_watts(members: Sequence[Member], engine: EngineModel, living: Living) -> Watts:
    """Of one GPU: as measured, else by profile; an engine that sleeps keeps its GPU from its deepest rest."""
    asleep = [m for m in members if living.phase(m.law.name) is Phase.STOPPED and m.energy.watts is not None]
    if asleep:
        return Watts(sum(m.energy.watts or 0.0 for m in asleep) / len(asleep) / members[0].law.tp)
    if members[0].sleeps or not isinstance(engine, PhysicsModel):
        return engine.idle_watts
    return Watts(engine.profile.power.p_off_owned_w)
