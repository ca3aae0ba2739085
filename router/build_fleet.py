"""Shell: from settings to the fleet: models, pools, instances with their engine profiles."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from control.admission import ASSUMED_SLOTS, AdmissionRules
from control.governor import GovernorRules
from control.holdback import HoldbackRules
from control.mapping import Proof, Standing
from control.pick import Rng
from control.recording import RecordedBook, RecordedSteering, Recorder
from control.state import Instance, Limits, LoadBook, PoolRules
from control.steering import Steering
from joulegate.domain import EngineModel
from joulegate.engine_profile import EngineProfile, parse_profile
from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from joulegate.settings.load import read_secret
from joulegate.units import MegaHertz, Seconds
from predictor.artifact import is_artifact
from predictor.latency_artifact import load as load_models
from predictor.length import HistoryPredictor
from predictor.physics import PhysicsModel
from router.fleet import InstanceStatus
from router.holdback_meter import HoldbackMeter
from router.learned import build_predictor, restore_models
from router.limits import UpstreamLimits
from router.pools import Fleet, Member, Model, Pool
from router.ports import Endpoint, Engine
from router.speed import Speed

DEFAULT_CHUNK = 2048  # prompt tokens an iteration, where neither settings nor profile say
DEFAULT_SWITCH = Seconds(0.1)  # clock-switch latency of a GPU without a profile


def build_fleet(settings: settings_of.Gateway, record: Callable[[bytes], None] | None = None) -> Fleet:
    """`record` takes the lines of a recording; None: none is made.

    Raises UserError for a profile that cannot be read.
    """
    models: dict[str, Model] = {}
    predictor = build_predictor(settings)
    for section in settings.models:
        recorder = None if record is None else Recorder(section.name, record)
        model = _model(settings, section, predictor, recorder)
        models[model.name] = model
        models.update(dict.fromkeys((*section.aliases, *section.adapters), model))
    fleet = Fleet(models)
    restore_models(settings, [member for _, _, member in fleet.members()])
    return fleet


def pool_rules(settings: settings_of.Gateway, section: settings_of.Pool) -> PoolRules:
    return PoolRules(
        name=section.name,
        objectives=settings.objectives_of(section),
        types=frozenset(section.request_types),
        shed=section.overload == "shed",
    )


def _model(
    settings: settings_of.Gateway,
    section: settings_of.Model,
    predictor: HistoryPredictor,
    recorder: Recorder | None,
) -> Model:
    members = {
        pool.name: tuple(_member(settings, section, pool, each, recorder) for each in pool.instances)
        for pool in section.pools
    }
    laws = [member.law for group in members.values() for member in group]
    switch = max((_switch(member) for group in members.values() for member in group), default=DEFAULT_SWITCH)
    steer = Steering if recorder is None else partial(RecordedSteering, recorder)
    steering = steer(
        [pool_rules(settings, pool) for pool in section.pools],
        laws,
        AdmissionRules(),
        GovernorRules(
            switch=switch,
            dwell=Seconds(settings.control.dwell_s),
            stale_after=Seconds(settings.control.lease_ttl_s),
        ),
        die(random.Random().random),
    )
    cuts = settings.types.cuts
    return Model(
        name=section.name,
        aliases=section.aliases,
        cuts=cuts,
        pools={pool.name: _pool(pool, members[pool.name], steering) for pool in section.pools},
        steering=steering,
        predictor=predictor,
        use_max_tokens=settings.predictor.use_max_tokens,
    )


def _pool(section: settings_of.Pool, members: tuple[Member, ...], steering: Steering) -> Pool:
    clock = section.static_clock_mhz
    queue = steering.queues[section.name]
    return Pool(
        rules=queue.rules,
        mode=section.mode,
        static_clock=None if clock is None else MegaHertz(clock),
        members=members,
        queue=queue,
        queue_limit=section.queue_limit,
        power_priority=section.power_priority,
    )


def _member(
    settings: settings_of.Gateway,
    model: settings_of.Model,
    pool: settings_of.Pool,
    section: settings_of.Instance,
    recorder: Recorder | None,
) -> Member:
    profile, engine_model = read_model(section.profile)
    known_slots = section.slots or (profile.engine.max_num_seqs if profile is not None else None)
    law = Instance(
        name=section.name,
        pool=pool.name,
        book=LoadBook() if recorder is None else RecordedBook(section.name, recorder),
        limits=_limits(section, profile),
        model=engine_model,
        slots=known_slots or ASSUMED_SLOTS,
        tp=section.tensor_parallel,
    )
    trusted = settings.control.mapping == "trust"
    kind = "unprofiled" if section.profile is None else section.profile.stem
    return Member(
        proof=Proof(Standing.PROVEN, "trusted, not tried") if trusted else Proof(),
        model_name=model.name,
        law=law,
        status=InstanceStatus(_endpoint(settings, model, pool, section)),
        agent=section.agent,
        gpus=section.gpus,
        known_slots=known_slots,
        speed=Speed(engine_model),
        holdback=HoldbackMeter(section.name, HoldbackRules(settings.control.holdback_pct / 100.0)),
        kind=f"{kind}/tp{section.tensor_parallel}",
        sleeps=section.scale is not None and section.scale.vllm_sleep is not None,
    )


def _limits(section: settings_of.Instance, profile: EngineProfile | None) -> Limits:
    engine = None if profile is None else profile.engine
    return Limits(
        max_num_seqs=section.slots or (engine.max_num_seqs if engine else None),
        chunk_budget=section.chunk_tokens or (engine.max_num_batched_tokens if engine else DEFAULT_CHUNK),
        kv_capacity=section.kv_tokens or (engine.kv_capacity_tokens if engine else None),
    )


def _endpoint(
    settings: settings_of.Gateway,
    model: settings_of.Model,
    pool: settings_of.Pool,
    section: settings_of.Instance,
) -> Endpoint:
    parts = urlsplit(section.url)
    tls = parts.scheme == "https"
    key = read_secret(section.api_key, section.api_key_file)
    return Endpoint(
        name=section.name,
        pool=pool.name,
        engine=Engine(section.engine),
        host=parts.hostname or "",
        port=parts.port or (443 if tls else 80),
        tls=tls,
        ca_file=None if section.ca_file is None else str(section.ca_file),
        authorization=None if key is None else b"Bearer " + key.encode(),
        emulated=section.emulated,
        usage_injection=settings.usage_injection == "auto",
        model=model.name,
        adapters=frozenset(model.adapters),
        limits=UpstreamLimits(
            connect=pool.timeouts.connect_s,
            head=pool.timeouts.first_byte_s,
            silence=pool.timeouts.idle_s,
        ),
    )


def read_model(path: Path | None) -> tuple[EngineProfile | None, EngineModel | None]:
    """An engine profile with its model, or a learned model alone. Raises UserError naming file and key."""
    if path is None:
        return None, None
    try:
        content = path.read_bytes()
        if not is_artifact(content):
            profile = parse_profile(orjson.loads(content))
            return profile, PhysicsModel(profile)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"engine profile {path}: {error}", "see configs/profiles/README.md") from error
    models = load_models(path)
    if len(models) != 1:
        raise UserError(f"{path} holds {len(models)} engines", "train one model for each")
    return None, models[0]


def _switch(member: Member) -> Seconds:
    model = member.law.model
    return (
        Seconds(model.profile.actuation.clock_switch_s) if isinstance(model, PhysicsModel) else DEFAULT_SWITCH
    )


def die(uniform: Callable[[], float]) -> Rng:
    """Integers below n from numbers in [0, 1): a quarter of the time of random.randrange."""
    return lambda n: int(uniform() * n)
