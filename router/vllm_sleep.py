"""Shell: vLLM's sleep mode as an actuator (papers §10.5).

The engine must have been started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1. Those routes are never
reachable for clients of the gateway. At level 2 the weights are dropped: they are loaded anew before the KV
cache is made, in the order that vLLM asks for.
"""

import orjson

from control.lifecycle import Seen
from router.actuators import ActuationFailed, Sight
from router.http_client import ControlClient, Unreachable

LOOK_WITHIN = 2.0  # seconds
RELOAD = orjson.dumps({"method": "reload_weights"})
NOT_THERE = "start the engine with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1"


class VllmSleep:
    """One engine. `patience`: seconds for one call; waking answers when the engine is awake."""

    def __init__(self, client: ControlClient, level: int, patience: float) -> None:
        self._client = client
        self._level = level
        self._patience = patience

    async def look(self) -> Sight:
        try:
            reply = await self._client.get("/is_sleeping", LOOK_WITHIN)
        except Unreachable as error:
            return Sight(Seen.UNKNOWN, str(error))
        if reply.status == 404:
            return Sight(Seen.UNKNOWN, f"it has no /is_sleeping: {NOT_THERE}")
        try:
            asleep = orjson.loads(reply.body)["is_sleeping"] if reply.status == 200 else None
        except (ValueError, KeyError, TypeError):
            asleep = None
        if not isinstance(asleep, bool):
            return Sight(Seen.UNKNOWN, f"/is_sleeping answered {reply.status} and does not say")
        return Sight(Seen.STOPPED if asleep else Seen.RUNNING)

    async def start(self) -> None:
        if self._level == 1:
            await self._post("/wake_up")
            return
        await self._post("/wake_up?tags=weights")
        await self._post("/collective_rpc", RELOAD)
        await self._post("/wake_up?tags=kv_cache")
        await self._post("/reset_prefix_cache")

    async def stop(self) -> None:
        """`mode=wait`: what reached the engine past this gateway ends first, where vLLM knows the word."""
        await self._post(f"/sleep?level={self._level}&mode=wait")

    async def close(self) -> None:
        return None

    async def _post(self, path: str, body: bytes = b"") -> None:
        try:
            reply = await self._client.post(path, body, self._patience)
        except Unreachable as error:
            raise ActuationFailed(str(error)) from error
        if reply.status == 404:
            raise ActuationFailed(f"it has no {path}: {NOT_THERE}")
        if reply.status != 200:
            raise ActuationFailed(f"{path} answered {reply.status}")
