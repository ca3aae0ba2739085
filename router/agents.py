"""Shell: what the gateway says to a node's agent, and the last thing the agent said back.

The agent decides who may lower clocks: it grants a lease with a token. Here we only keep the token and give
it up when the agent says that it is stale. Raising needs no lease.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from joulegate.units import MegaHertz, Seconds, Watts
from joulegate.wire import (
    BoostReply,
    BoostRequest,
    CapsReply,
    CapsRequest,
    CapState,
    GpuList,
    GpuState,
    LeaseRefused,
    Message,
    SyncReply,
    SyncRequest,
)
from router.agent_view import AgentView
from router.http_client import ControlClient, Reply, Unreachable

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
TIMEOUT = 1.0  # seconds; half of the shortest lease


class Agent:
    """One node's agent. Every call updates `view` and never raises for what the network or the agent does."""

    def __init__(self, name: str, client: ControlClient, holder: str) -> None:
        self.name = name
        self.view = AgentView()
        self._client = client
        self._holder = holder

    async def discover(self, now: Seconds) -> None:
        """Learn GPUs, clocks and capabilities."""
        try:
            reply = _decode(await self._client.get("/v1/gpus", TIMEOUT), GpuList)
        except (Unreachable, _Refused) as error:
            return self._down(str(error))
        self.view.infos = {info.uuid: info for info in reply.infos}
        self._seen(reply.gpus, now)

    async def sync(
        self,
        targets: Mapping[str, MegaHertz | None],
        groups: Sequence[Sequence[str]],
        ttl: Seconds,
        reason: str,
        now: Seconds,
    ) -> bool:
        """Renew the lease and set ceilings. True if this gateway holds the lease now.

        `groups`: GPUs that work in step, as those of a tensor-parallel instance: lowered all or none.
        """
        request = SyncRequest(
            holder=self._holder,
            lease=self.view.lease,
            ttl_s=ttl,
            targets=dict(targets),
            groups=tuple(tuple(group) for group in groups if len(group) > 1),
            reason=reason[:200],
        )
        try:
            reply = await self._client.post("/v1/sync", request.model_dump_json().encode(), TIMEOUT)
            if reply.status == 409:
                return self._refused(_parse(reply.body, LeaseRefused), now)
            answer = _decode(reply, SyncReply)
        except (Unreachable, _Refused) as error:
            self._down(str(error))
            return False
        if self.view.restarts not in (None, answer.restarts):
            log.warning("agent restarted", extra={"agent": self.name, "restarts": answer.restarts})
        self.view.restarts, self.view.lease = answer.restarts, answer.lease
        self.view.lease_until = Seconds(now + answer.expires_in_s)  # counted from before we asked: never late
        self._seen(answer.gpus, now)
        return True

    async def give_back(self, reason: str, now: Seconds) -> None:
        """End the lease: the clocks go back to default, and whoever asks next may set them.

        Asked once: where that fails, or the agent knows no such request yet, the lease runs out.
        """
        lease, self.view.lease = self.view.lease, None
        request = SyncRequest(holder=self._holder, lease=lease, ttl_s=0.0, reason=reason[:200])
        try:
            reply = await self._client.post("/v1/sync", request.model_dump_json().encode(), TIMEOUT)
            if reply.status == 409:
                self._refused(_parse(reply.body, LeaseRefused), now)
                return
            self._seen(_decode(reply, SyncReply).gpus, now)
        except (Unreachable, _Refused) as error:
            self._down(str(error))

    async def boost(
        self, floors: Mapping[str, MegaHertz], duration: Seconds, reason: str, now: Seconds
    ) -> bool:
        """Raise clocks for a moment, lease or not. True if the agent took it."""
        request = BoostRequest(
            holder=self._holder, floors=dict(floors), duration_s=duration, reason=reason[:200]
        )
        try:
            reply = await self._client.post("/v1/boost", request.model_dump_json().encode(), TIMEOUT)
            self._seen(_decode(reply, BoostReply).gpus, now)
        except (Unreachable, _Refused) as error:
            self._down(str(error))
            return False
        return True

    async def cap(
        self, caps: Mapping[str, Watts | None], epoch: int, reason: str
    ) -> Mapping[str, CapState] | str:
        """Set power caps, which outlive us; None: the one before. The caps read back, or why not."""
        request = CapsRequest(holder=self._holder, epoch=epoch, caps=dict(caps), reason=reason[:200])
        try:
            reply = await self._client.post("/v1/caps", request.model_dump_json().encode(), TIMEOUT)
            return _decode(reply, CapsReply).caps
        except (Unreachable, _Refused) as error:
            return str(error)

    async def close(self) -> None:
        await self._client.close()

    def _refused(self, refusal: LeaseRefused, now: Seconds) -> bool:
        self.view.lease, self.view.held_until = None, Seconds(now + refusal.retry_in_s)
        self._seen(refusal.gpus, now)
        self.view.problem = f"lease held by {refusal.holder}, {refusal.retry_in_s:.1f} s left"
        return False

    def _seen(self, gpus: tuple[GpuState, ...], now: Seconds) -> None:
        self.view.gpus = {gpu.uuid: gpu for gpu in gpus}  # a GPU that is not among them is not known any more
        self.view.seen, self.view.up, self.view.problem = now, True, ""

    def _down(self, problem: str) -> None:
        if self.view.up:
            log.warning("agent lost", extra={"agent": self.name, "problem": problem})
        self.view.up, self.view.problem = False, problem


class _Refused(Exception):
    """The agent answered, but not with what we asked for."""


def _decode(reply: Reply, shape: type[M]) -> M:
    if reply.status != 200:
        raise _Refused(f"agent answered {reply.status}: {reply.body[:200].decode(errors='replace')}")
    return _parse(reply.body, shape)


def _parse(body: bytes, shape: type[M]) -> M:
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        raise _Refused(f"agent's reply is not a {shape.__name__}: {error.error_count()} errors") from error
