"""Shell: pools of a model that are merged, and instances that change pools: labels move, nothing else.

A merged pool has no instances; its requests belong to its host, which promises the same and is at least as
large. What waits moves with it, what runs stays where it is.
"""

from control.labels import Labelled, labels, served
from control.provision import Provision
from joulegate.units import Seconds
from router.gate import FleetGate
from router.pools import Member, Model, Pool


def arrange(model: Model, plan: Provision, gate: FleetGate, now: Seconds) -> bool:
    """Pools and labels as the plan has them; whether anything changed."""
    wanted = labels([_labelled(pool, member) for pool, member in _members(model)], plan.counts, plan.merged)
    same = all(member.law.pool == wanted[name] for name, member in model.members.items())
    if same and {name: pool.host for name, pool in model.pools.items() if pool.host} == plan.merged:
        return False
    for name, pool in model.pools.items():
        pool.host = plan.merged.get(name, "")
    for name, member in model.members.items():
        if member.law.pool != wanted[name]:
            member.move(wanted[name])
    settle(model)
    for name, host in plan.merged.items():
        gate.rehome(model.pools[name], model.pools[host])
    gate.changed(now)
    return True


def settle(model: Model) -> None:
    """What every pool serves and holds follows from hosts, labels and the rules as configured."""
    order = {name: index for index, name in enumerate(model.members)}
    pools = model.pools.values()
    rules = served([pool.home for pool in pools], {pool.name: pool.host for pool in pools if pool.host})
    for pool, now in zip(pools, rules, strict=True):
        pool.rules = now
        members = [member for member in model.members.values() if member.law.pool == pool.name]
        pool.members = tuple(sorted(members, key=lambda member: order[member.law.name]))
    model.rules = tuple(pool.rules for pool in pools if not pool.host)
    model.steering.relabel(rules)


def _members(model: Model) -> list[tuple[Pool, Member]]:
    return [(pool, member) for pool in model.pools.values() for member in pool.members]


def _labelled(pool: Pool, member: Member) -> Labelled:
    return Labelled(
        member.law.name, member.kind, pool.name, member.home, member.law.ready, len(member.sessions)
    )
