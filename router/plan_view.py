"""Shell: the plan as JSON: what /admin/plan shows. Seconds, watts, joules."""

from typing import Any

from joulegate.units import Seconds
from router.planning import Planned, Planning
from router.pools import Fleet, Model, Pool
from router.scaler import Scaled, Scaler

Json = dict[str, Any]


def plan_picture(fleet: Fleet, planning: Planning, scaler: Scaler, now: Seconds) -> Json:
    rules = planning.rules
    return {
        "mode": rules.mode,
        "pools": "elastic" if rules.elastic else "fixed",
        "epoch_s": rules.epoch,
        "calm_s": rules.calm,
        "models": [_model(model, planning.models[model.name], scaler, now) for model in fleet.unique()],
        "transitions": [
            {
                "instance": one.instance,
                "way": one.way,
                "outcome": one.outcome,
                "seconds": one.seconds,
                "joules": one.joules,
                "age_s": now - one.ended,
                "problem": one.problem,
            }
            for one in reversed(scaler.transitions.recent)
        ],
    }


def _model(model: Model, planned: Planned, scaler: Scaler, now: Seconds) -> Json:
    plan = planned.plan
    return {
        "name": model.name,
        "epochs_learned": planned.epochs,
        "forecast_requests_per_s": planned.peak,
        "problem": planned.problem,
        "plan": None
        if plan is None
        else {
            "age_s": now - planned.at,
            "took_s": planned.seconds,
            "instances": dict(plan.counts),
            "merged": dict(plan.merged),
            "watts_estimated": plan.watts,
            "gap_ratio": plan.gap,
            "more_load_than_instances": list(plan.short),
        },
        "pools": [_pool(pool, planned, scaler, now) for pool in model.pools.values()],
    }


def _pool(pool: Pool, planned: Planned, scaler: Scaler, now: Seconds) -> Json:
    sizing = planned.sizes.get(pool.name)
    return {
        "name": pool.name,
        "merged_into": pool.host,
        "desired": pool.desired,
        "why": "" if sizing is None else sizing.sentence,
        "running": sum(member.law.ready for member in pool.members),
        "instances": [
            {
                "name": member.law.name,
                "ready": member.law.ready,
                "why_not": member.status.why_not(now),
                **_life(scaler.scaled.get(member.law.name), now),
            }
            for member in pool.members
        ],
    }


def _life(each: Scaled | None, now: Seconds) -> Json:
    if each is None:
        return {"phase": None}
    life = each.life
    return {
        "phase": life.phase.value,
        "since_s": now - life.since if life.since > float("-inf") else None,
        "wanted": each.wanted,
        "failures": life.failures,
        "problem": life.problem,
        "next_try_s": max(0.0, life.not_before - now) if life.failures else None,
        "seen": each.sight.seen.value,
        "why_unknown": each.sight.why,
    }
