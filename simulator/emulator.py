"""Shell: `joulegate emulate`: a whole emulated fleet in one process, one port per engine instance."""

import asyncio
import gc
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import orjson
import uvloop

from gpu_agent.plant import GpuSpec, Plant, PlantGpu
from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.errors import UserError
from joulegate.settings.fleet import EmulatedEngine, Fleet, Node
from joulegate.units import Seconds, Watts
from simulator.emulator_http import App, Connection
from simulator.emulator_instance import LATENESS_BOUNDS, LiveEngine
from simulator.emulator_text import OutputLengths
from simulator.emulator_tgi import TgiApp
from simulator.emulator_vllm import VllmApp, VllmSettings
from simulator.histogram import Histogram
from simulator.perturb import perturbed
from simulator.real_time import go_first

KEEP_ALIVE = 5.0  # seconds, as vLLM and TGI
BACKLOG = 2048


@dataclass(frozen=True, slots=True)
class Instance:
    settings: EmulatedEngine
    engine: LiveEngine
    app: App


def emulate(fleet: Fleet, ready: Callable[[bytes], None]) -> None:
    """Serve until SIGINT or SIGTERM. `ready` gets one JSON object once every port listens."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(fleet, ready))


def read_profile(path: Path) -> EngineProfile:
    """Raises UserError when the file is no engine profile."""
    try:
        return parse_profile(orjson.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the engine profile {path}: {error}") from error


async def _serve(fleet: Fleet, ready: Callable[[bytes], None]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    # Ports first: where another emulator has them, its plants stay as they are.
    places = [_bound(fleet.host, settings) for settings in fleet.instances]
    gpus = create_plants(fleet.nodes)
    for gpu in gpus.values():
        gpu.processes = (os.getpid(),)
    instances: list[Instance] = []
    started = time.monotonic()

    def stats() -> bytes:
        return orjson.dumps(_stats(instances, gpus, started))

    instances += [_instance(fleet, settings, gpus, stats, loop) for settings in fleet.instances]
    servers = [await _listen(loop, place, i) for place, i in zip(places, instances, strict=True)]
    gc.collect()
    gc.freeze()  # what lives as long as the process is not looked at again: no long pauses between tokens
    go_first()
    ready(orjson.dumps(_readiness(fleet)))
    await stopped.wait()
    for server in servers:
        server.close()
    for instance in instances:
        instance.engine.leave()


def create_plants(nodes: tuple[Node, ...]) -> dict[str, PlantGpu]:
    """Make the plant file of every node; returns the GPUs by place, `node/index`."""
    gpus: dict[str, PlantGpu] = {}
    for node in nodes:
        profile = read_profile(node.profile)
        power = profile.power
        specs = [
            GpuSpec(
                uuid=node.uuid(index),
                clocks=profile.clocks,
                name=f"Emulated {profile.gpu}",
                pci=f"00000000:{index + 1:02X}:00.0",
                settle=Seconds(profile.actuation.clock_switch_s),
                idle_watts=Watts(power.p_idle_w),
                cap_watts=(Watts(0.3 * power.tdp_w), Watts(power.tdp_w), Watts(power.tdp_w)),
            )
            for index in range(node.gpus)
        ]
        try:
            plant = Plant.create(node.plant, specs)
        except OSError as error:
            raise UserError(f"cannot make the plant {node.plant}: {error.strerror}") from error
        gpus |= {f"{node.name}/{index}": gpu for index, gpu in enumerate(plant.gpus)}
    return gpus


def _instance(
    fleet: Fleet,
    settings: EmulatedEngine,
    gpus: Mapping[str, PlantGpu],
    stats: Callable[[], bytes],
    loop: asyncio.AbstractEventLoop,
) -> Instance:
    seed = _seed(f"{fleet.seed}/{settings.name}")
    profile = _profile(settings, seed if fleet.perturb else None)
    mine = [gpus[place] for place in settings.gpus]
    if len(mine) != profile.tp:
        raise UserError(
            f"instance {settings.name} has {len(mine)} GPUs, its profile {profile.name} needs {profile.tp}",
            "list as many GPUs as the profile's tp",
        )
    engine = LiveEngine(profile, mine, _noise(fleet.noise_pct / 100.0, seed), loop)
    lengths = OutputLengths(fleet.output_length.median_tokens, fleet.output_length.sigma, fleet.seed)
    if settings.engine == "tgi":
        limit = settings.max_concurrent_requests
        tgi = TgiApp(engine, settings.model, settings.max_model_len, limit, lengths, stats)
        return Instance(settings, engine, tgi)
    ids = random.Random(seed ^ time.time_ns())
    app = VllmApp(
        engine,
        VllmSettings(settings.model, settings.max_model_len, settings.max_num_queued_reqs, settings.dev_mode),
        lengths,
        stats,
        lambda: f"{ids.getrandbits(64):016x}",
    )
    return Instance(settings, engine, app)


def _profile(settings: EmulatedEngine, seed: int | None) -> EngineProfile:
    profile = read_profile(settings.profile)
    given = {
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "kv_capacity_tokens": settings.kv_capacity_tokens,
    }
    limits = replace(profile.engine, **{name: value for name, value in given.items() if value is not None})
    profile = replace(profile, engine=limits)
    return profile if seed is None else perturbed(profile, seed)


def _noise(sigma: float, seed: int) -> Callable[[], float] | None:
    """Factor on an iteration's time: log-normal, mean 1."""
    if sigma == 0.0:
        return None
    draw = random.Random(seed)
    return lambda: draw.lognormvariate(-0.5 * sigma * sigma, sigma)


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _bound(host: str, settings: EmulatedEngine) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, settings.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"instance {settings.name} cannot listen on {host}:{settings.port}: {error.strerror}",
            "is another emulator running?",
        ) from error


async def _listen(
    loop: asyncio.AbstractEventLoop, place: socket.socket, instance: Instance
) -> asyncio.Server:
    return await loop.create_server(lambda: Connection(instance.app, KEEP_ALIVE), sock=place, backlog=BACKLOG)


def _readiness(fleet: Fleet) -> dict[str, object]:
    return {
        "ready": True,
        "pid": os.getpid(),
        "instances": [{"name": i.name, "url": f"http://{fleet.host}:{i.port}"} for i in fleet.instances],
        "nodes": [
            {"name": node.name, "plant": str(node.plant), "gpus": [node.uuid(i) for i in range(node.gpus)]}
            for node in fleet.nodes
        ],
    }


def _stats(instances: list[Instance], gpus: Mapping[str, PlantGpu], started: float) -> dict[str, object]:
    now = time.monotonic()
    lateness = Histogram(LATENESS_BOUNDS)
    for instance in instances:
        lateness.add(instance.engine.counters.lateness)
    joules = {gpu.uuid: gpu.true_energy_at(Seconds(now)) for gpu in gpus.values()}
    rows = [_instance_stats(instance, now) for instance in instances]
    return {
        "uptime_s": now - started,
        "lateness_ms": _milliseconds(lateness),
        "requests": sum(i.engine.counters.requests for i in instances),
        "output_tokens": sum(i.engine.counters.output_tokens for i in instances),
        "joules": sum(joules.values()),
        "gpu_joules": joules,
        "instances": rows,
    }


def _instance_stats(instance: Instance, now: float) -> dict[str, object]:
    counters = instance.engine.counters
    return {
        "name": instance.settings.name,
        "running": instance.engine.running,
        "waiting": instance.engine.waiting,
        "requests": counters.requests,
        "aborted": counters.aborted,
        "rejected": counters.rejected,
        "prompt_tokens": counters.prompt_tokens,
        "output_tokens": counters.output_tokens,
        "preemptions": counters.preemptions,
        "joules": instance.engine.energy_of(now),
        "lateness_ms": _milliseconds(counters.lateness),
    }


def _milliseconds(lateness: Histogram) -> dict[str, float]:
    return {
        "p50": 1e3 * lateness.quantile(0.5),
        "p99": 1e3 * lateness.quantile(0.99),
        "max": 1e3 * lateness.largest,
    }
