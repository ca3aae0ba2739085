"""Shell: a gateway that runs: every part is made here, its loops start and end here."""

import asyncio
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

from prometheus_client import CollectorRegistry

from control.power_budget import EmergencyPolicy
from control.verify import VerifyRules
from joulegate.errors import UserError
from joulegate.settings import gateway as settings_of
from joulegate.settings.energy import Energy
from joulegate.settings.front import ApiKey
from joulegate.settings.load import read_secret
from joulegate.settings.power import Power
from joulegate.units import Seconds, Watts
from predictor.online_drift import DriftSettings
from router.accounts import Accounts
from router.actuate import ActuationRules, Node
from router.agents import Agent
from router.build_fleet import build_fleet, die
from router.build_scaler import build_scaled
from router.errors import GatewayError
from router.footprint import Footprint, constant, series
from router.gate import FleetGate
from router.http_client import ControlClient
from router.keys import KeyEntry, Keys, digest
from router.learned import save_predictor
from router.learned_share import LearnedShare
from router.observe import Condition, GatewayCollector
from router.plan_share import PlanShare
from router.planning import Planning, PlanTerms
from router.poll_client import control_client
from router.pools import Fleet, Member
from router.ports import Caller, Endpoint
from router.power import Named, PowerKeeper, PowerRules
from router.power_tick import PowerTick
from router.prober import Prober
from router.proof_file import ProofFile
from router.proofs import Proofs
from router.proving import Prover
from router.rate_limits import KeyLimits, RateLimits
from router.record_file import RecordFile
from router.refit import Refitter
from router.replicas import Replicas
from router.rescue import Rescue
from router.responses import Makers
from router.scaler import Scaler
from router.store import MemoryStore, RedisStore, Store
from router.tally import Tally
from router.tick import ControlTick

log = logging.getLogger(__name__)
RESTART_AFTER = 1.0  # seconds until a loop that failed is started again


class Runtime:
    """One gateway process. `start` inside a running event loop; `stop` gives the clocks back."""

    def __init__(self, settings: settings_of.Gateway) -> None:
        self._stack = AsyncExitStack()
        self.name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
        self.settings = settings
        self.fleet = self._fleet()
        self.tally = Tally(footprint=build_footprint(settings.energy))
        self.condition = Condition(reloaded_at=time.time())
        self.keys = build_keys(settings)
        members = [member for _, _, member in self.fleet.members()]
        books = {member.law.name: member.law.book for member in members}
        limits = RateLimits(key_limits(settings), Seconds(time.monotonic()), self.name)
        store, proofs, makers, plan = self._store(), Proofs(members), Makers(), PlanShare()
        self._proof_file = ProofFile(settings.control.proofs_file)
        predictor = next(self.fleet.unique()).predictor  # one serves every model
        self._learned = LearnedShare(store, predictor, random.Random().random)
        self.agents = {section.name: self._agent(section) for section in settings.agents}
        accounts = Accounts(self.fleet, self.tally)
        self.gate = FleetGate(
            self.fleet,
            accounts,
            limits,
            makers,
            settings.retry.budget_pct / 100.0,
            die(random.Random().random),
            time.monotonic,
            self._wake,
        )
        self.replicas = Replicas(
            store,
            books,
            limits,
            proofs,
            makers,
            plan,
            self.gate.deaths,
            self.condition,
            time.monotonic,
            self._share,
        )
        keeper = PowerKeeper(power_rules(settings.power))
        self.power = PowerTick(self.fleet, self.agents, keeper, settings.power.emergency_file)
        self.nodes = {name: self._node(agent, keeper) for name, agent in self.agents.items()}
        self.tick = self._control(accounts)
        self.scaler = self._scaler(plan)
        self.planning = self._planning()
        self.registry = self._registry(keeper)
        self._tasks: list[asyncio.Task[None]] = []

    def refused(self, error: GatewayError) -> None:
        """A client got an error that no instance had a part in."""
        name = error.code or error.type
        self.tally.refusals[name] = self.tally.refusals.get(name, 0) + 1

    @property
    def ready(self) -> str:
        """Why requests cannot be served now; "" when they can."""
        if self.fleet.draining:
            return "shutting down"
        if not any(member.law.ready for _, _, member in self.fleet.members()):
            return "no instance takes requests"
        return ""

    async def start(self) -> None:
        """Probe everything once, then start the loops."""
        probers = [self._prober(member) for _, _, member in self.fleet.members()]
        interval = self.settings.health.interval_s
        self._begin("replicas", self.replicas.run)
        if self.settings.store.redis_url is not None:
            self._begin("learned", self._learned.run)
        for index, prober in enumerate(probers):
            self._begin("prober", partial(prober.run, interval, interval * index / len(probers)))
        for node in self.nodes.values():
            self._begin("node", node.run)
        for node in self.nodes.values():
            self._begin("proving", self._prover(node).run)
        self._begin("tick", self.tick.run)
        if self.settings.plan.mode != "off":
            self._begin("planning", self.planning.run)
        if self.settings.plan.mode == "enforce":
            self._begin("scaler", self.scaler.run)
        refit_interval = self.settings.control.refit_interval_s
        if refit_interval is not None:
            rules = DriftSettings(refit_interval=Seconds(refit_interval))
            self._begin("refit", Refitter(self.fleet, rules, time.monotonic).run)

    def leave(self) -> None:
        """Told to stop: nothing new is taken, what runs ends, and another replica leads if there is one."""
        self.fleet.draining = self.replicas.leaving = True

    async def stop(self) -> None:
        """Clocks first, then everything else. Requests have ended or are about to be cut."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(node.release("the gateway stops") for node in self.nodes.values()))
        await self.scaler.close()
        await self.replicas.close()
        save_predictor(self.settings, next(self.fleet.unique()).predictor)  # one serves every model
        await self._stack.aclose()

    def _wake(self) -> None:
        self.tick.wake()
        self.scaler.wake()
        self.replicas.push()

    def _changed(self) -> None:
        for model in self.fleet.unique():
            model.hear_contexts()
        self.gate.changed(Seconds(time.monotonic()))

    def _share(self, replicas: int) -> None:
        """Between two exchanges each replica may use its part of the headroom."""
        for model in self.fleet.unique():
            model.steering.share = 1.0 / replicas

    def _begin(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(_forever(name, loop), name=name))

    def _fleet(self) -> Fleet:
        """Recorded, where the settings say so."""
        path = self.settings.control.record_file
        if path is None:
            return build_fleet(self.settings)
        file = RecordFile(path)
        self._stack.callback(file.close)
        return build_fleet(self.settings, file.write)

    def _control(self, accounts: Accounts) -> ControlTick:
        return ControlTick(
            self.fleet,
            self.gate,
            accounts,
            self.tally,
            self.nodes,
            self.replicas.load,
            self.power,
            Rescue(self.gate),
            lambda: self.replicas.leads,
            Seconds(self.settings.control.tick_ms / 1e3),
            time.monotonic,
            time.time,
        )

    def _store(self) -> Store:
        url = self.settings.store.redis_url
        if url is None:
            return MemoryStore()
        return RedisStore(url.get_secret_value(), cluster=self._cluster(), replica=self.name)

    def _cluster(self) -> str:
        """Replicas in front of the same instances share; others on the same Redis do not meet."""
        urls = sorted(instance.url for _, instance in self.settings.instances())
        return digest("\n".join(urls)).hex()[:12]

    def _agent(self, section: settings_of.Agent) -> Agent:
        ca_file = None if section.ca_file is None else str(section.ca_file)
        shown = None
        if section.cert_file is not None and section.key_file is not None:
            shown = str(section.cert_file), str(section.key_file)
        token = read_secret(section.token, section.token_file)
        client = control_client(section.url, token, ca_file, shown)
        self._stack.push_async_callback(client.close)
        return Agent(section.name, client, self.name)

    def _node(self, agent: Agent, keeper: PowerKeeper) -> Node:
        control = self.settings.control
        members = [member for _, _, member in self.fleet.members() if member.agent == agent.name]
        rules = ActuationRules(Seconds(control.tick_ms / 1e3), Seconds(control.lease_ttl_s), VerifyRules())
        return Node(
            agent, members, rules, time.monotonic, lambda: self.replicas.leads, keeper.caps, time.time
        )

    def _registry(self, power: PowerKeeper) -> CollectorRegistry:
        made = CollectorRegistry(auto_describe=False)
        made.register(
            GatewayCollector(
                self.fleet, self.tally, self.agents, self.condition, power, self.planning, self.scaler
            )
        )
        return made

    def _scaler(self, share: PlanShare) -> Scaler:
        return Scaler(
            self.fleet,
            build_scaled(self.settings, self.fleet, lambda member: self._engine(member.endpoint)),
            self.settings.plan.at_once,
            lambda: self.replicas.leads,
            lambda name: self.replicas.load(name).running,
            share,
            self._changed,
            time.monotonic,
        )

    def _planning(self) -> Planning:
        plan = self.settings.plan
        warm = {
            (model.name, pool.name): pool.min_warm for model in self.settings.models for pool in model.pools
        }
        return Planning(
            self.fleet,
            PlanTerms(
                plan.mode,
                plan.pools == "elastic",
                Seconds(plan.epoch_s),
                Seconds(plan.calm_s),
                plan.cover_pct / 100.0,
            ),
            lambda model, pool: warm[model.name, pool.name],
            self.scaler,
            self.gate,
            lambda: self.replicas.leads,
            lambda: self.replicas.count,
            time.monotonic,
            time.time,
        )

    def _prover(self, node: Node) -> Prover:
        """Clocks are lowered by who leads, in pools that say so and wherever power budgets do."""
        pools = {member.law.name: pool for _, pool, member in self.fleet.members()}
        askers = {member.law.name: self._engine(member.endpoint) for member in node.members}

        def needed(member: Member) -> bool:
            lowers = pools[member.law.name].sets_clocks or self.power.keeper.rules.enforce
            return lowers and self.replicas.leads

        return Prover(node.agent, node.members, askers, needed, self._proof_file, time.monotonic)

    def _engine(self, endpoint: Endpoint) -> ControlClient:
        scheme = "https" if endpoint.tls else "http"
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        key = endpoint.authorization
        token = None if key is None else key.decode().removeprefix("Bearer ")
        client = control_client(f"{scheme}://{host}:{endpoint.port}", token, endpoint.ca_file)
        self._stack.push_async_callback(client.close)
        return client

    def _prober(self, member: Member) -> Prober:
        health = self.settings.health
        return Prober(
            member.status,
            member.law.book,
            self._engine(member.endpoint),
            time.monotonic,
            self._changed,
            health.path,
            health.timeout_s,
        )


def build_footprint(settings: Energy) -> Footprint:
    """Raises UserError for a series that cannot be read."""
    intensity = None if settings.carbon_g_per_kwh is None else constant(settings.carbon_g_per_kwh)
    if settings.carbon_file is not None:
        try:
            intensity = series(settings.carbon_file.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            raise UserError(f"carbon intensity {settings.carbon_file}: {error}") from error
    return Footprint(settings.pue, intensity, settings.price_per_kwh, settings.currency)


def power_rules(settings: Power) -> PowerRules:
    return PowerRules(
        enforce=settings.mode == "enforce",
        domains=tuple(Named(d.name, Watts(d.budget_w), d.inside, d.agents, d.gpus) for d in settings.domains),
        policy=EmergencyPolicy(
            ratio=settings.emergency_pct / 100.0,
            hold=Seconds(settings.hold_s),
            trip=Seconds(settings.trip_s),
            ramp=Seconds(settings.ramp_s),
        ),
        hot=settings.hot_c,
    )


def key_limits(settings: settings_of.Gateway) -> dict[str, KeyLimits]:
    return {key.name: KeyLimits(key.rpm, key.tpm, key.concurrency) for key in settings.auth.keys}


def build_keys(settings: settings_of.Gateway) -> Keys:
    """Raises UserError for a secret that cannot be read."""
    auth = settings.auth
    entries = [
        KeyEntry(
            _digest(section),
            Caller(
                section.name,
                frozenset(section.models),
                Seconds(section.min_ttft_ms / 1e3),
                Seconds(section.min_tpot_ms / 1e3),
                section.energy_in_usage,
            ),
        )
        for section in auth.keys
    ]
    admin = read_secret(auth.admin_key, auth.admin_key_file)
    return Keys(entries, None if admin is None else digest(admin))


def _digest(section: ApiKey) -> bytes:
    if section.sha256 is not None:
        return bytes.fromhex(section.sha256)
    return digest(read_secret(section.key, section.key_file) or "")


async def _forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """A loop that fails is logged and started again; meanwhile leases run out and clocks rise again."""
    while True:
        try:
            await loop()
        except Exception:
            log.exception("loop failed", extra={"loop": name})
        await asyncio.sleep(RESTART_AFTER)
