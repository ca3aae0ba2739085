"""Shell: the node's agent during a sweep: hold the lease, set ceilings, read energy, give the clocks back.

The lease is renewed in the background. When the sweep ends, is cut short or fails, the ceilings are taken
away; when this process dies instead, the agent does it by itself as the lease runs out.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from pydantic import ValidationError

from joulegate.errors import UserError
from joulegate.units import MegaHertz
from joulegate.wire import (
    GpuInfo,
    GpuList,
    GpuState,
    LeaseRefused,
    Message,
    SyncReply,
    SyncRequest,
    WireError,
)
from router.http_client import HttpClient, Reply, Unreachable

HOLDER = "joulegate-profile"
TTL = 5.0  # s
RENEW = 1.0  # s
TIMEOUT = 3.0  # s, of one exchange
CLOSE_ENOUGH = 30  # MHz between a ceiling and the clock read back
PATIENCE = 10.0  # s for a clock to arrive
LAST_TTL = 1.0  # s: with the ceilings gone the lease itself should go soon
RELEASE_TRIES = 3
HEAVY = frozenset({"power_cap", "hw_slowdown", "thermal", "hw_thermal", "power_brake"})

Reading = TypeVar("Reading", bound=Message)


class HeldElsewhere(UserError):
    """Somebody else has the lease of this node."""

    def __init__(self, refused: LeaseRefused) -> None:
        super().__init__(
            f"the agent's clocks are held by {refused.holder}: {refused.message}",
            "pause that gateway (joulegate pause) while a sweep runs",
        )
        self.holder = refused.holder


@dataclass(frozen=True, slots=True)
class Meter:
    """All GPUs of the instance at one moment."""

    joules: float
    at: float  # agent's clock
    capped: bool

    def watts_since(self, before: "Meter", gpus: int) -> float:
        """Mean watts per GPU between two readings; 0 when the agent had nothing new."""
        return (self.joules - before.joules) / (self.at - before.at) / gpus if self.at > before.at else 0.0


class Agent:
    """The GPUs of one instance. Used as a context manager when clocks are to be set."""

    def __init__(self, client: HttpClient, infos: Sequence[GpuInfo]) -> None:
        self._client = client
        self.infos = tuple(infos)
        self._uuids = {info.uuid for info in infos}
        self._target: MegaHertz | None = None
        self._lease: int | None = None
        self._renewals: asyncio.Task[None] | None = None

    @property
    def clocks(self) -> tuple[MegaHertz, ...]:
        """Clocks every GPU supports and its agent allows."""
        shared = set(self.infos[0].clocks_mhz).intersection(*(info.clocks_mhz for info in self.infos))
        low = max(info.allowed_mhz[0] for info in self.infos)
        high = min(info.allowed_mhz[1] for info in self.infos)
        return tuple(MegaHertz(clock) for clock in sorted(shared) if low <= clock <= high)

    async def __aenter__(self) -> "Agent":
        for info in self.infos:
            if not info.writable:
                raise UserError(
                    f"{info.uuid}: the agent may not set its clock: {info.why_not_writable or 'unknown'}",
                    "allow_writes in agent.yaml, or sweep at one clock with --fixed-clock",
                )
        await self._acquire()
        self._renewals = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewals is not None:
            self._renewals.cancel()
            with contextlib.suppress(asyncio.CancelledError, UserError):
                await self._renewals  # what ended it was told by `check`, or is no longer of interest
        self._target = None
        await asyncio.shield(self._release())

    async def set_clock(self, clock: MegaHertz) -> bool:
        """Set the ceiling and wait for it. False: the GPUs stayed below it, or did not come down to it."""
        self._target = clock
        for _ in range(round(PATIENCE / 0.2)):
            reply = await self._sync()
            if all(state.clock_mhz <= clock + CLOSE_ENOUGH for state in self._ours(reply.gpus)):
                return True
            await asyncio.sleep(0.2)
        return False

    async def read(self) -> Meter:
        self.check()
        states = self._ours((await self._list()).gpus)
        broken = [state for state in states if state.fault]
        if broken:
            raise UserError(f"{broken[0].uuid}: {broken[0].fault}", "the agent's log says more")
        return Meter(
            joules=sum(state.energy_j for state in states),
            at=max(state.observed_at_s for state in states),
            capped=any(HEAVY.intersection(state.reasons) for state in states),
        )

    async def clock_now(self) -> MegaHertz:
        return MegaHertz(min(state.clock_mhz for state in self._ours((await self._list()).gpus)))

    def check(self) -> None:
        """Raises what ended the renewals, if they have ended."""
        if self._renewals is not None and self._renewals.done():
            self._renewals.result()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW)
            await self._sync()

    async def _acquire(self) -> None:
        """An earlier sweep that was killed still holds its lease: that runs out by itself."""
        for _ in range(round(PATIENCE / RENEW)):
            try:
                await self._sync()
            except HeldElsewhere as refused:
                if refused.holder != HOLDER:
                    raise
                await asyncio.sleep(RENEW)
            else:
                return
        await self._sync()

    async def _sync(self, ttl: float = TTL) -> SyncReply:
        request = SyncRequest(
            holder=HOLDER,
            lease=self._lease,
            ttl_s=ttl,
            targets={uuid: self._target for uuid in sorted(self._uuids)},
            reason="profile",
        )
        reply = await _sent(self._client, "/v1/sync", request)
        if reply.status == 409:
            refused = _parsed(LeaseRefused, reply)
            raise HeldElsewhere(refused)
        answer = _parsed(SyncReply, reply)
        self._lease = answer.lease
        return answer

    async def _release(self) -> None:
        for attempt in range(RELEASE_TRIES):
            try:
                await self._sync(LAST_TTL)
            except UserError:
                if attempt + 1 == RELEASE_TRIES:
                    raise
                await asyncio.sleep(0.3)
            else:
                return

    async def _list(self) -> GpuList:
        return _parsed(GpuList, await _got(self._client, "/v1/gpus"))

    def _ours(self, states: Sequence[GpuState]) -> list[GpuState]:
        found = [state for state in states if state.uuid in self._uuids]
        if len(found) < len(self._uuids):
            raise UserError("the agent no longer lists every GPU of the sweep", "the agent's log says why")
        return found


@contextlib.asynccontextmanager
async def agent_of(url: str, token: str | None, uuids: Sequence[str]) -> AsyncIterator[Agent]:
    """The agent at `url` (http, https or unix:/path) and the GPUs asked for; all of its GPUs when none is.

    Raises UserError.
    """
    client = HttpClient(url, token)
    try:
        listed = _parsed(GpuList, await _got(client, "/v1/gpus"))
        known = {info.uuid: info for info in listed.infos}
        missing = [uuid for uuid in uuids if uuid not in known]
        if missing or not known:
            raise UserError(
                f"the agent has no GPU {', '.join(missing) or 'at all'}",
                f"it has {', '.join(known) or 'none'}",
            )
        if not uuids and len(known) > 1:
            raise UserError(
                "the node has several GPUs: name those of the instance with --gpus",
                f"it has {', '.join(known)}",
            )
        yield Agent(client, [known[uuid] for uuid in uuids] or list(known.values()))
    finally:
        await client.close()


async def _got(client: HttpClient, path: str) -> Reply:
    try:
        return await client.get(path, TIMEOUT)
    except Unreachable as error:
        raise UserError(
            f"agent {client.url}: {error}", "is it running? --agent takes http(s):// or unix:/"
        ) from error


async def _sent(client: HttpClient, path: str, message: Message) -> Reply:
    try:
        return await client.post(path, message.model_dump_json().encode(), TIMEOUT)
    except Unreachable as error:
        raise UserError(
            f"agent {client.url}: {error}", "its lease ends by itself and clocks return"
        ) from error


def _parsed(shape: type[Reading], reply: Reply) -> Reading:
    try:
        if reply.status in {200, 409}:
            return shape.model_validate_json(reply.body)
        refusal = WireError.model_validate_json(reply.body)
    except ValidationError as error:
        raise UserError(
            f"the agent's answer ({reply.status}) is not understood", "is this its address?"
        ) from error
    raise UserError(f"the agent refused ({reply.status}): {refusal.error}", refusal.help)
