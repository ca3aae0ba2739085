"""Shell: the gateway's Prometheus metrics. Every metric is declared here, once.

Counting happens in plain numbers (`router.tally`); this turns them into families when somebody scrapes.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import inf

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from control.power_budget import Phase
from joulegate import __version__
from router.agents import Agent
from router.capacity import desired_replicas, used_ratio
from router.planning import Planning
from router.pools import Fleet, Member, Model, Pool
from router.power import PowerKeeper
from router.scaler import Scaler
from router.tally import Histogram, Tally
from router.transitions import WAYS, Transitions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric's help text and labels."""

    help: str
    labels: tuple[str, ...] = ()


POOL = ("model", "pool")
INSTANCE = ("model", "pool", "instance")
GPU = ("agent", "gpu")
COUNTERS: Mapping[str, Declared] = {
    "joulegate_requests": Declared("Requests that ended, by how they ended.", (*POOL, "outcome")),
    "joulegate_objective_requests": Declared("Requests that an objective applied to.", (*POOL, "objective")),
    "joulegate_objective_met": Declared("Requests that met the objective.", (*POOL, "objective")),
    "joulegate_tokens": Declared("Tokens of served requests, as engines report them.", (*POOL, "kind")),
    "joulegate_spills": Declared("Requests served by a larger pool than their own.", POOL),
    "joulegate_retries": Declared("Requests sent once more, to another instance.", POOL),
    "joulegate_gpu_energy_joules": Declared(
        "Energy of an instance's GPUs, measured by their counters.", INSTANCE
    ),
    "joulegate_request_energy_joules": Declared(
        "Energy attributed to requests; measured, then shared out.", POOL
    ),
    "joulegate_key_energy_joules": Declared("Energy attributed to the requests of an API key.", ("key",)),
    "joulegate_idle_energy_joules": Declared(
        "Energy of an instance while no request did any work.", INSTANCE
    ),
    "joulegate_energy_baseline_joules": Declared(
        "What the same work would have cost at maximum clock; estimated by the latency and power model.",
        INSTANCE,
    ),
    "joulegate_carbon_grams": Declared(
        "CO2 of the measured energy, by the operator's PUE and grid intensity."
    ),
    "joulegate_energy_cost": Declared("Cost of the measured energy, by the operator's price.", ("currency",)),
    "joulegate_clock_changes": Declared("Changes of an instance's clock target.", INSTANCE),
    "joulegate_decisions": Declared("Governor decisions, by reason.", (*INSTANCE, "reason")),
    "joulegate_model_refits": Declared(
        "Times an instance's latency model was learned anew while serving.", (*INSTANCE, "outcome")
    ),
    "joulegate_transitions": Declared(
        "Times the plan stopped or started an instance.", (*INSTANCE, "way", "outcome")
    ),
    "joulegate_transition_seconds": Declared("Time that stopping and starting took.", (*INSTANCE, "way")),
    "joulegate_transition_energy_joules": Declared(
        "Energy of an instance's GPUs while it was stopped or started, measured.", (*INSTANCE, "way")
    ),
    "joulegate_refusals": Declared("Errors answered by the gateway itself, by code.", ("code",)),
    "joulegate_lease_expirations": Declared("Leases that ran out before they were renewed."),
}
GAUGES: Mapping[str, Declared] = {
    "joulegate_queue_requests": Declared("Requests waiting in the gateway.", POOL),
    "joulegate_capacity_used_ratio": Declared(
        "Requests running and queued over what keeps every objective at maximum clock.", (*POOL, "at")
    ),
    "joulegate_desired_replicas": Declared(
        "Instances that should run: by the plan; without one, those that would run the present load at 80 %.",
        POOL,
    ),
    "joulegate_delay_price_ratio": Declared(
        "What delay costs over the most it may: at 1 objectives are missed although clocks are near maximum.",
        POOL,
    ),
    "joulegate_instance_phase": Declared(
        "1 for where an instance stands that the plan stops and starts.", (*INSTANCE, "phase")
    ),
    "joulegate_forecast_requests_per_second": Declared(
        "Peak that the forecast expects of the next epoch.", ("model",)
    ),
    "joulegate_plan_up": Declared("1 if the last plan could be made.", ("model",)),
    "joulegate_running_requests": Declared("Requests at an instance.", INSTANCE),
    "joulegate_instance_up": Declared("1 if requests may be sent to the instance.", INSTANCE),
    "joulegate_instance_misfit": Declared(
        "1 if the engine lists models, and that of the instance is not among them.", INSTANCE
    ),
    "joulegate_instance_proven": Declared(
        "1 if the instance was seen to work on its GPUs: before that its clocks are not lowered.", INSTANCE
    ),
    "joulegate_model_error_ratio": Declared(
        "Relative error that 95 % of iterations stay below, as the governor allows for it.", INSTANCE
    ),
    "joulegate_model_correction_ratio": Declared(
        "What live traffic multiplies the latency model by, at the clock in force.", INSTANCE
    ),
    "joulegate_tokens_per_step": Declared(
        "Output tokens that a sequence gets in one step: more than 1 with speculative decoding.", INSTANCE
    ),
    "joulegate_gpu_clock_hertz": Declared("SM clock, read back.", GPU),
    "joulegate_gpu_clock_target_hertz": Declared(
        "Clock ceiling asked for; 0: the driver's default.", INSTANCE
    ),
    "joulegate_measured_saving_ratio": Declared(
        "Energy saved against the blocks held back at default clocks, with its 95 % interval.", ("bound",)
    ),
    "joulegate_power_domain_watts": Declared("Power of a domain's GPUs, measured.", ("domain",)),
    "joulegate_power_domain_budget_watts": Declared("Its budget, as an emergency cuts it.", ("domain",)),
    "joulegate_power_domain_unmet": Declared("1 if its budget is below its lowest caps.", ("domain",)),
    "joulegate_power_emergency": Declared("1 while budgets are cut, or on their way back."),
    "joulegate_power_capped_gpus": Declared("GPUs that have a power cap of ours."),
    "joulegate_agent_up": Declared("1 if the node's agent answers.", ("agent",)),
    "joulegate_store_up": Declared("1 if the shared store answers, or none is needed."),
    "joulegate_config_last_reload_successful": Declared("1 if the last reload was taken over."),
    "joulegate_config_last_reload_success_timestamp_seconds": Declared("When settings were last taken over."),
}
HISTOGRAMS: Mapping[str, Declared] = {
    "joulegate_ttft_seconds": Declared("Arrival to first output.", POOL),
    "joulegate_tpot_seconds": Declared("Time per output token after the first, per request.", POOL),
    "joulegate_itl_seconds": Declared("Gap between two tokens.", POOL),
    "joulegate_queue_seconds": Declared("Time in the gateway's queue.", POOL),
    "joulegate_prediction_error_ratio": Declared("Predicted over actual, per request.", ("what",)),
    "joulegate_gateway_seconds": Declared("What the gateway itself adds to a request before it is sent."),
}


@dataclass(slots=True)
class Condition:
    """What else is shown: set by the loops that know."""

    store_up: bool = True
    reload_successful: bool = True
    reloaded_at: float = 0.0  # unix time


class GatewayCollector(Collector):
    def __init__(
        self,
        fleet: Fleet,
        tally: Tally,
        agents: Mapping[str, Agent],
        condition: Condition,
        power: PowerKeeper,
        planning: Planning,
        scaler: Scaler,
    ) -> None:
        self._planning = planning
        self._scaler = scaler
        self._fleet = fleet
        self._power = power
        self._tally = tally
        self._agents = agents
        self._condition = condition

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("joulegate_build", "The gateway's version.", {"version": __version__})
        yield from self._families(COUNTERS, CounterMetricFamily, self._counters())
        yield from self._families(GAUGES, GaugeMetricFamily, self._gauges())
        yield from self._histograms()

    def _families(
        self,
        declared: Mapping[str, Declared],
        kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
        samples: Iterable[tuple[str, tuple[str, ...], float]],
    ) -> Iterator[Metric]:
        families = {name: kind(name, what.help, labels=what.labels) for name, what in declared.items()}
        for name, labels, value in samples:
            families[name].add_metric(labels, value)
        yield from families.values()

    def _counters(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for model, pool in self._fleet.pools():
            yield from _pool_counters((model.name, pool.name), pool)
        for model, pool, member in self._fleet.members():
            labels = model.name, pool.name, member.law.name
            yield from _member_counters(labels, member)
            yield from _transitions(labels, self._scaler.transitions)
        for code, count in self._tally.refusals.items():
            yield "joulegate_refusals", (code,), count
        footprint = self._tally.footprint
        if footprint.intensity is not None:
            yield "joulegate_carbon_grams", (), footprint.grams
        if footprint.price_per_kwh is not None:
            yield "joulegate_energy_cost", (footprint.currency,), footprint.cost
        for key, joules in self._tally.key_joules.items():
            yield "joulegate_key_energy_joules", (key,), joules
        yield "joulegate_lease_expirations", (), self._tally.lease_expirations

    def _gauges(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        for model, pool in self._fleet.pools():
            labels = model.name, pool.name
            yield from _pool_gauges(labels, pool)
            prices = model.steering.pools[pool.name].prices
            yield "joulegate_delay_price_ratio", labels, prices.bound_ratio
        for model, pool, member in self._fleet.members():
            yield from _member_gauges(model, pool, member)
            phase = self._scaler.phase(member.law.name)
            if phase is not None:
                yield "joulegate_instance_phase", (model.name, pool.name, member.law.name, phase.value), 1.0
        for name, agent in self._agents.items():
            yield "joulegate_agent_up", (name,), float(agent.view.up)
            for uuid, gpu in agent.view.gpus.items():
                yield "joulegate_gpu_clock_hertz", (name, uuid), gpu.clock_mhz * 1e6
        yield from _power_gauges(self._power)
        for name, planned in self._planning.models.items():
            if planned.epochs:
                yield "joulegate_forecast_requests_per_second", (name,), planned.peak
                yield "joulegate_plan_up", (name,), float(not planned.problem)
        saving = self._tally.saving
        if saving is not None:
            for bound, value in (("estimate", saving.ratio), ("low", saving.low), ("high", saving.high)):
                yield "joulegate_measured_saving_ratio", (bound,), value
        condition = self._condition
        yield "joulegate_store_up", (), float(condition.store_up)
        yield "joulegate_config_last_reload_successful", (), float(condition.reload_successful)
        yield "joulegate_config_last_reload_success_timestamp_seconds", (), condition.reloaded_at

    def _histograms(self) -> Iterator[Metric]:
        families = {
            name: HistogramMetricFamily(name, what.help, labels=what.labels)
            for name, what in HISTOGRAMS.items()
        }
        for model, pool in self._fleet.pools():
            tally, labels = pool.tally, (model.name, pool.name)
            _add(families["joulegate_ttft_seconds"], labels, tally.ttft)
            _add(families["joulegate_tpot_seconds"], labels, tally.tpot)
            _add(families["joulegate_itl_seconds"], labels, tally.itl)
            _add(families["joulegate_queue_seconds"], labels, tally.queue)
        for what, histogram in self._tally.prediction_error.items():
            _add(families["joulegate_prediction_error_ratio"], (what,), histogram)
        _add(families["joulegate_gateway_seconds"], (), self._tally.overhead)
        yield from families.values()


def page(registry: CollectorRegistry) -> bytes:
    """The text exposition of everything."""
    return generate_latest(registry)


def _pool_counters(labels: tuple[str, str], pool: Pool) -> Iterator[tuple[str, tuple[str, ...], float]]:
    tally = pool.tally
    for outcome, count in tally.outcomes.items():
        yield "joulegate_requests", (*labels, outcome), count
    for objective, count in tally.asked.items():
        yield "joulegate_objective_requests", (*labels, objective), count
        yield "joulegate_objective_met", (*labels, objective), tally.met.get(objective, 0)
    yield "joulegate_tokens", (*labels, "prompt"), tally.prompt_tokens
    yield "joulegate_tokens", (*labels, "completion"), tally.completion_tokens
    yield "joulegate_tokens", (*labels, "cached"), tally.cached_tokens
    yield "joulegate_request_energy_joules", labels, tally.joules
    yield "joulegate_spills", labels, tally.spilled
    yield "joulegate_retries", labels, tally.retried


def _pool_gauges(labels: tuple[str, str], pool: Pool) -> Iterator[tuple[str, tuple[str, ...], float]]:
    laws, queued = [member.law for member in pool.members], len(pool.queue)
    yield "joulegate_queue_requests", labels, queued
    yield "joulegate_capacity_used_ratio", (*labels, "max_clock"), used_ratio(laws, queued)
    desired = desired_replicas(laws, queued) if pool.desired is None else pool.desired
    yield "joulegate_desired_replicas", labels, desired


def _member_counters(
    labels: tuple[str, str, str], member: Member
) -> Iterator[tuple[str, tuple[str, ...], float]]:
    tally = member.tally
    yield "joulegate_gpu_energy_joules", labels, tally.joules
    yield "joulegate_idle_energy_joules", labels, member.energy.idle_joules
    yield "joulegate_energy_baseline_joules", labels, tally.baseline_joules
    yield "joulegate_clock_changes", labels, tally.clock_changes
    yield "joulegate_model_refits", (*labels, "done"), member.speed.refits.done
    yield "joulegate_model_refits", (*labels, "failed"), member.speed.refits.failed
    for reason, count in tally.decisions.items():
        yield "joulegate_decisions", (*labels, reason), count


def _transitions(
    labels: tuple[str, str, str], transitions: Transitions
) -> Iterator[tuple[str, tuple[str, ...], float]]:
    for way in WAYS:
        sums = transitions.sums.get((labels[2], way))
        if sums is not None:
            yield "joulegate_transitions", (*labels, way, "done"), sums.done
            yield "joulegate_transitions", (*labels, way, "failed"), sums.failed
            yield "joulegate_transition_seconds", (*labels, way), sums.seconds
            yield "joulegate_transition_energy_joules", (*labels, way), sums.joules


def _member_gauges(model: Model, pool: Pool, member: Member) -> Iterator[tuple[str, tuple[str, ...], float]]:
    labels = (model.name, pool.name, member.law.name)
    yield "joulegate_running_requests", labels, member.open
    yield "joulegate_instance_up", labels, float(member.law.ready)
    yield "joulegate_instance_misfit", labels, float(member.status.misfit != "")
    if pool.sets_clocks:
        yield "joulegate_instance_proven", labels, float(member.proven)
    yield "joulegate_gpu_clock_target_hertz", labels, (member.target or 0) * 1e6
    if member.law.model is not None:
        yield "joulegate_model_error_ratio", labels, member.law.model_error
        yield "joulegate_model_correction_ratio", labels, member.law.correction
        yield "joulegate_tokens_per_step", labels, member.law.tokens_per_step


def _power_gauges(power: PowerKeeper) -> Iterator[tuple[str, tuple[str, ...], float]]:
    for domain in power.domains:
        yield "joulegate_power_domain_watts", (domain.name,), domain.drawn
        yield "joulegate_power_domain_budget_watts", (domain.name,), domain.limit
        yield "joulegate_power_domain_unmet", (domain.name,), float(domain.unmet)
    yield "joulegate_power_emergency", (), float(power.emergency.phase is not Phase.NORMAL)
    yield "joulegate_power_capped_gpus", (), sum(cap < inf for cap in power.caps.standing.values())


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram) -> None:
    total, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), total))
    family.add_metric(labels, buckets, histogram.total)
