"""Pure: the fleet as JSON: what /admin/* and `joulegate status` show."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from control.holdback import MeasuredSaving
from joulegate.units import Seconds
from router.accounts import attainment
from router.agent_view import AgentView
from router.pools import Fleet, Member, Model, Pool, RequestRecord
from router.tally import Tally

Json = dict[str, Any]


def fleet_picture(fleet: Fleet, agents: Mapping[str, AgentView], now: Seconds) -> Json:
    """Models, pools, instances, agents. Times are seconds, power watts, energy joules, clocks MHz."""
    return {
        "models": [_model(model, agents, now) for model in fleet.unique()],
        "agents": [_agent(name, view, now) for name, view in agents.items()],
        "draining": fleet.draining,
    }


def energy_picture(fleet: Fleet, tally: Tally) -> Json:
    """Joules: measured by counters, attributed to requests, idle; CO2 and cost where figures were given."""
    footprint = tally.footprint
    members = [member for _, _, member in fleet.members()]
    measured = sum(member.tally.joules for member in members)
    baseline = sum(member.tally.baseline_joules for member in members)
    return {
        "joules_measured": measured,
        "joules_attributed": sum(member.energy.attributed_joules for member in members),
        "joules_idle": sum(member.energy.idle_joules for member in members),
        "joules_at_max_clock_estimated": baseline,
        "saved_pct_measured": _saving(tally.saving),
        "saved_pct_estimated": 100.0 * (1.0 - measured / baseline) if baseline > 0 else None,
        "pools": [
            {"model": model.name, "pool": pool.name, "joules_attributed": pool.tally.joules}
            for model, pool in fleet.pools()
        ],
        "keys": [{"key": key, "joules_attributed": joules} for key, joules in tally.key_joules.items()],
        "carbon_g": footprint.grams if footprint.intensity is not None else None,
        "cost": footprint.cost if footprint.price_per_kwh is not None else None,
        "currency": footprint.currency if footprint.price_per_kwh is not None else None,
    }


def _saving(found: MeasuredSaving | None) -> Json | None:
    if found is None:
        return None
    return {
        "estimate": 100.0 * found.ratio,
        "interval_95": [100.0 * found.low, 100.0 * found.high],
        "blocks_held_back": found.blocks_held,
        "blocks_governed": found.blocks_governed,
    }


def requests(fleet: Fleet, last: int) -> list[Json]:
    """The latest requests, newest first: what was predicted and what happened. No prompts."""
    return [_request(record) for record in _latest(fleet.requests, last)]


def request(fleet: Fleet, wanted: str) -> Json | None:
    """One request by its id, if it is remembered."""
    return next((_request(r) for r in reversed(fleet.requests) if r.id == wanted), None)


def _request(r: RequestRecord) -> Json:
    return {
        "id": r.id,
        "model": r.model,
        "type": r.type,
        "pool": r.pool,
        "instance": r.instance,
        "reason": r.reason,
        "clock_mhz": r.clock,
        "queued_s": r.queued,
        "input_tokens": r.input_tokens,
        "predicted": {
            "output_tokens_q50": r.predicted_output[0],
            "output_tokens_q90": r.predicted_output[1],
            "ttft_s": r.predicted_ttft,
            "tpot_s": r.predicted_tpot,
        },
        "actual": {
            "outcome": r.outcome or "running",
            "output_tokens": r.output_tokens,
            "ttft_s": r.ttft,
            "tpot_s": r.tpot,
            "joules_attributed": r.joules,
        },
    }


def decisions(fleet: Fleet, now: Seconds, last: int) -> list[Json]:
    """The latest decisions of the governors, newest first."""
    return [
        {
            "age_s": now - d.at,
            "clock_mhz": d.clock,
            "reason": d.reason.value,
            "sentence": d.sentence,
            "predicted_tpot_s": d.tpot,
        }
        for d in _latest(fleet.decisions, last)
    ]


def _latest(items: "Iterable[Any]", count: int) -> list[Any]:
    return list(islice(reversed(list(items)), count))


def _model(model: Model, agents: Mapping[str, AgentView], now: Seconds) -> Json:
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "characters_per_token": model.chars_per_token.value,
        "tokens_per_event": model.tokens_per_event.value,
        "pools": [_pool(pool, agents, now) for pool in model.pools.values()],
    }


def _pool(pool: Pool, agents: Mapping[str, AgentView], now: Seconds) -> Json:
    promised, tally = pool.rules.objectives, pool.tally
    return {
        "name": pool.name,
        "mode": pool.mode,
        "paused": pool.paused or ("objectives were missed at lower clocks" if pool.resting else ""),
        "types": sorted(kind.name for kind in pool.rules.types),
        "queued": len(pool.queue),
        "running": sum(member.open for member in pool.members),
        "objectives": {
            "ttft_s": list(promised.ttft),
            "tpot_s": promised.tpot,
            "e2e_s": promised.e2e,
            "max_slowdown": promised.max_slowdown,
        },
        "ttft_p99_s": tally.ttft.quantile(0.99),
        "tpot_p99_s": tally.tpot.quantile(0.99),
        "attainment_ratio": attainment(pool),
        "outcomes": dict(tally.outcomes),
        "instances": [_member(member, pool, agents, now) for member in pool.members],
    }


def _member(member: Member, pool: Pool, agents: Mapping[str, AgentView], now: Seconds) -> Json:
    law, status, decision, proof = member.law, member.status, member.decision, member.proof
    unproven = f"GPUs not proven: {proof.why}" if pool.sets_clocks and not member.proven else ""
    view = agents.get(member.agent or "")
    gpus = [view.gpus[gpu] for gpu in member.gpus if gpu in view.gpus] if view is not None else []
    return {
        "name": law.name,
        "health": status.health.value,
        "why_not": status.why_not(now),
        "draining": status.draining,
        "running": member.open,
        "decoding": law.book.decoding,
        "context_tokens": law.book.context,
        "engine_running": status.gauges.running,
        "engine_waiting": status.gauges.waiting,
        "kv_usage_ratio": status.gauges.kv_usage,
        "slots": law.slots,
        "model": _source(member),
        "model_error": law.model_error,
        "correction": law.correction,
        "drift": member.speed.drifting.value,
        "refits": member.speed.refits.done,
        "refits_failed": member.speed.refits.failed,
        "refit_problem": member.speed.refits.problem,
        "target_mhz": member.target,
        "power_limit_mhz": member.limit,
        "asked_last": law.limited,
        "advised_mhz": decision.clock if decision is not None else None,
        "clock_mhz": min((gpu.clock_mhz for gpu in gpus), default=None),
        "ceiling_mhz": law.clock,
        "watts": sum(gpu.power_w for gpu in gpus) if gpus else None,
        "joules": member.tally.joules,
        "joules_attributed": member.energy.attributed_joules,
        "joules_idle": member.energy.idle_joules,
        "baseline_joules_estimated": member.tally.baseline_joules,
        "clock_changes": member.tally.clock_changes,
        "decision": decision.sentence if decision is not None else "",
        "reason": decision.reason.value if decision is not None else "",
        "clocks_left_alone": member.distrusted or unproven,
        "mapping": {"state": proof.state.value, "why": proof.why},
    }


def _source(member: Member) -> str:
    """Where its latency and power model comes from."""
    if member.law.model is None:
        return "none yet"
    if not member.speed.profiled:
        return "learned"
    refits = member.speed.refits
    return "refitted" if refits.done or refits.restored else "profile"


def _agent(name: str, view: AgentView, now: Seconds) -> Json:
    return {
        "name": name,
        "observed_only": {u: i.why_not_writable for u, i in view.infos.items() if i.why_not_writable},
        "caps_w": view.caps,
        "up": view.up,
        "problem": view.problem,
        "seen_s_ago": now - view.seen if view.up else None,
        "lease": view.lease is not None and view.lease_until > now,
        "gpus": [
            {
                "uuid": gpu.uuid,
                "clock_mhz": gpu.clock_mhz,
                "ceiling_mhz": gpu.ceiling_mhz,
                "watts": gpu.power_w,
                "joules": gpu.energy_j,
                "temperature_c": gpu.temperature_c,
                "reasons": list(gpu.reasons),
                "fault": gpu.fault,
            }
            for gpu in view.gpus.values()
        ],
    }
