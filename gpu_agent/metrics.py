"""Shell: the agent's Prometheus metrics, made from its state when they are asked for."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpu_agent.managed import ManagedGpu
from gpu_agent.node import Node
from joulegate import __version__
from joulegate.units import Seconds
from joulegate.wire import GpuState

HERTZ_PER_MHZ = 1e6
FORECAST = Seconds(60.0)


class NodeCollector(Collector):
    """Reads the GPUs once a scrape."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterable[Metric]:
        self._node.observe()
        states = self._node.states()
        yield from _readings(states)
        yield from _control(list(self._node.gpus.values()))
        yield _build()
        expired = CounterMetricFamily("joulegate_lease_expirations", "Leases that ran out unrenewed.")
        expired.add_metric([], self._node.expirations)
        yield expired


def exposition(node: Node) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(node))
    return generate_latest(registry)


def _readings(states: Iterable[GpuState]) -> Iterable[Metric]:
    energy = CounterMetricFamily(
        "joulegate_gpu_energy_joules",
        "Energy used: measured by the driver's counter, or integrated from power where it has none.",
        labels=["gpu", "source"],
    )
    power = GaugeMetricFamily("joulegate_gpu_power_watts", "Power draw (measured).", labels=["gpu"])
    clock = GaugeMetricFamily("joulegate_gpu_clock_hertz", "SM clock read back.", labels=["gpu"])
    target = GaugeMetricFamily(
        "joulegate_gpu_clock_target_hertz",
        "Clock ceiling that is set; absent: driver default.",
        labels=["gpu"],
    )
    heat = GaugeMetricFamily("joulegate_gpu_temperature_celsius", "GPU temperature.", labels=["gpu"])
    reason = GaugeMetricFamily(
        "joulegate_gpu_clock_reason", "Clock-event reasons that are active.", labels=["gpu", "reason"]
    )
    healthy = GaugeMetricFamily(
        "joulegate_gpu_healthy", "0 while a GPU cannot be read or set.", labels=["gpu"]
    )
    for state in states:
        energy.add_metric([state.uuid, state.energy_source], state.energy_j)
        healthy.add_metric([state.uuid], state.fault is None)
        power.add_metric([state.uuid], state.power_w)
        clock.add_metric([state.uuid], state.clock_mhz * HERTZ_PER_MHZ)
        heat.add_metric([state.uuid], state.temperature_c)
        if state.ceiling_mhz is not None:
            target.add_metric([state.uuid], state.ceiling_mhz * HERTZ_PER_MHZ)
        for name in state.reasons:
            reason.add_metric([state.uuid, name], 1)
    return energy, power, clock, target, heat, reason, healthy


def _control(gpus: Iterable[ManagedGpu]) -> Iterable[Metric]:
    changes = CounterMetricFamily(
        "joulegate_clock_changes", "Clock ceilings written.", labels=["gpu", "direction"]
    )
    write = GaugeMetricFamily(
        "joulegate_clock_write_seconds", "How long the last clock write took in the driver.", labels=["gpu"]
    )
    arrival = GaugeMetricFamily(
        "joulegate_clock_actuation_seconds",
        "From a call that lowers a clock until it is read back there: slowest of the last; absent: unknown.",
        labels=["gpu"],
    )
    heat = GaugeMetricFamily(
        "joulegate_gpu_temperature_forecast_celsius",
        "Temperature in a minute at the present draw, by a model learned here; absent until it is.",
        labels=["gpu"],
    )
    guard = GaugeMetricFamily("joulegate_gpu_guard", "1 for the guard's state.", labels=["gpu", "state"])
    for gpu in gpus:
        for direction, count in gpu.changes.items():
            changes.add_metric([gpu.uuid, direction], count)
        if gpu.write_seconds is not None:
            write.add_metric([gpu.uuid], gpu.write_seconds)
        if gpu.actuation is not None:
            arrival.add_metric([gpu.uuid], gpu.actuation)
        forecast = gpu.forecast(FORECAST)
        if forecast is not None:
            heat.add_metric([gpu.uuid], forecast)
        guard.add_metric([gpu.uuid, gpu.guard.state.value], 1)
    return changes, write, arrival, heat, guard


def _build() -> Metric:
    build = GaugeMetricFamily("joulegate_build_info", "The version that runs.", labels=["version"])
    build.add_metric([__version__], 1)
    return build
