"""Shell: health, metrics and administration over FastAPI; requests of users take the relay beside it.

/admin needs the admin key. Where none is configured it answers callers on this machine only.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from joulegate import __version__
from joulegate.units import Seconds
from router.observe import CONTENT_TYPE, page
from router.picture import decisions, energy_picture, fleet_picture, request, requests
from router.plan_view import plan_picture
from router.pools import Member, Pool
from router.power_view import power_picture
from router.reload import Reloader
from router.runtime import Runtime

LOOPBACK = {"127.0.0.1", "::1"}
SPOKEN_FOR = {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "origin"}
Json = dict[str, Any]
UNREADY: dict[int | str, Json] = {503: {"description": "No instance takes requests."}}
NOT_FOUND: dict[int | str, Json] = {404: {"description": "Nothing has that name."}}
BUDGETS_HOLD: dict[int | str, Json] = {409: {"description": "Budgets are enforced, or another leads."}}
UNREADABLE: dict[int | str, Json] = {400: {"description": "The body is not text."}}
INSTANCE = "$response.body#/models/0/pools/0/instances/0/name"
POOL = "$response.body#/models/0/pools/0/name"
# what one answer says is what another question asks for: for clients and tests that read the OpenAPI page
OF_FLEET: dict[int | str, Json] = {
    200: {
        "links": {
            "drain": {"operationId": "drain", "requestBody": {"instance": INSTANCE}},
            "resume": {"operationId": "drain", "requestBody": {"instance": INSTANCE, "resume": True}},
            "pause": {"operationId": "pause", "requestBody": {"pool": POOL}},
        }
    }
}
OF_REQUESTS: dict[int | str, Json] = {
    200: {
        "links": {
            "one": {"operationId": "request", "parameters": {"wanted": "$response.body#/requests/0/id"}}
        }
    }
}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PauseBody(Body):
    """Nothing named: every pool."""

    pool: str | None = None
    node: str | None = None
    resume: bool = False
    reason: str = "paused by an operator"


class DrainBody(Body):
    instance: str
    resume: bool = False


def build_app(runtime: Runtime, reloader: Reloader) -> FastAPI:
    """The app beside the relay. Its lifespan starts and stops the runtime."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        yield
        await runtime.stop()

    app = FastAPI(
        title="Joulegate",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={RequestValidationError: _unfit},
    )
    app.include_router(_probes(runtime))
    app.include_router(_admin(runtime, reloader))
    return app


async def _unfit(_: Request, error: Exception) -> JSONResponse:
    """What is wrong with a question, without what was asked: that need not be JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    said = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()]
    return JSONResponse({"detail": said}, 422)


def _probes(runtime: Runtime) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    async def healthz() -> Json:
        """The process lives."""
        return {"status": "ok"}

    @routes.get("/readyz", responses=UNREADY)
    async def readyz(response: Response) -> Json:
        """Requests can be served."""
        why = runtime.ready
        response.status_code = 503 if why else 200
        return {"status": why or "ok", "store": "up" if runtime.condition.store_up else "down"}

    @routes.get("/health", responses=UNREADY, response_class=Response)
    @routes.head("/health", responses=UNREADY, response_class=Response)
    async def health() -> Response:
        """As vLLM answers it: clients that are pointed at an engine ask for this."""
        return Response(status_code=503 if runtime.ready else 200)

    @routes.get("/metrics", response_class=PlainTextResponse)
    @routes.head("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(page(runtime.registry), media_type=CONTENT_TYPE)

    return routes


def _admin(runtime: Runtime, reloader: Reloader) -> APIRouter:
    def may(request: Request) -> None:
        """Raises 401/403 unless the caller is the administrator."""
        if runtime.keys.has_admin:
            if not runtime.keys.is_admin(request.headers.raw):
                raise HTTPException(401, "this needs the admin key")
        elif not from_here(request):
            raise HTTPException(403, "without an admin key, /admin answers this machine only")

    routes = APIRouter(prefix="/admin", dependencies=[Depends(may)])
    _looks(routes, runtime)
    _acts(routes, runtime, reloader)
    return routes


def from_here(request: Request) -> bool:
    """Somebody on this machine asks: no proxy for another, no page in a browser.

    A page from elsewhere is known by its `Origin`, or by the name that was made to mean this machine.
    """
    if request.client is None or request.client.host not in LOOPBACK:
        return False
    spoken_for = any(name in SPOKEN_FOR or name.startswith("x-forwarded") for name in request.headers)
    return not spoken_for and request.url.hostname in {*LOOPBACK, "localhost"}


def _looks(routes: APIRouter, runtime: Runtime) -> None:
    @routes.get("/fleet", responses=OF_FLEET)
    async def fleet() -> Json:
        views = {name: agent.view for name, agent in runtime.agents.items()}
        picture = fleet_picture(runtime.fleet, views, Seconds(time.monotonic()))
        return {
            "gateway": runtime.name,
            "leads": runtime.replicas.leads,
            "replicas": runtime.replicas.count,
            **picture,
            "power": power_picture(runtime.power.keeper, Seconds(time.monotonic())),
        }

    @routes.get("/plan")
    async def plan() -> Json:
        """What should run, what does, and why."""
        return plan_picture(runtime.fleet, runtime.planning, runtime.scaler, Seconds(time.monotonic()))

    @routes.get("/decisions")
    async def latest_decisions(last: Annotated[int, Query(ge=1, le=1000)] = 50) -> Json:
        return {"decisions": decisions(runtime.fleet, Seconds(time.monotonic()), last)}

    @routes.get("/energy")
    async def energy() -> Json:
        return energy_picture(runtime.fleet, runtime.tally)

    @routes.get("/requests/{wanted}", responses=NOT_FOUND, operation_id="request")
    async def one_request(wanted: str) -> Json:
        found = request(runtime.fleet, wanted)
        if found is None:
            raise HTTPException(404, "no such request among the latest")
        return found

    @routes.get("/requests", responses=OF_REQUESTS)
    async def latest_requests(last: Annotated[int, Query(ge=1, le=1000)] = 50) -> Json:
        return {"requests": requests(runtime.fleet, last)}


def _acts(routes: APIRouter, runtime: Runtime, reloader: Reloader) -> None:
    @routes.post("/pause", responses=NOT_FOUND | UNREADABLE, operation_id="pause")
    async def pause(body: PauseBody) -> Json:
        """Clocks go back to default, requests go on; `resume` takes it back."""
        pools = _named(runtime, body)
        for pool in pools:
            pool.paused = "" if body.resume else body.reason
        runtime.tick.wake()
        return {"pools": [{"pool": pool.name, "paused": pool.paused} for pool in pools]}

    @routes.post("/drain", responses=NOT_FOUND | UNREADABLE, operation_id="drain")
    async def drain(body: DrainBody) -> Json:
        """Send an instance no new requests; `resume` takes it back."""
        member = _member(runtime, body.instance)
        member.status.draining = not body.resume
        runtime.gate.changed(Seconds(time.monotonic()))
        return {"instance": member.law.name, "draining": member.status.draining, "running": member.open}

    @routes.post("/uncap", responses=BUDGETS_HOLD, operation_id="uncap")
    async def uncap() -> Json:
        """Give back the power caps that an earlier budget has left."""
        keeper = runtime.power.keeper
        if keeper.rules.enforce and keeper.rules.domains:
            raise HTTPException(409, "power budgets are enforced here: change those, then reload")
        if not runtime.replicas.leads:
            raise HTTPException(409, "another gateway leads: ask that one")
        caps = {gpu: cap for agent in runtime.agents.values() for gpu, cap in agent.view.caps.items()}
        keeper.caps.adopt(caps)
        return {"lifting": caps}

    @routes.post("/reload")
    async def reload(response: Response) -> Json:
        report = reloader.reload()
        response.status_code = 422 if report.refused else 200
        return report.picture()


def _named(runtime: Runtime, body: PauseBody) -> list[Pool]:
    found = [
        pool
        for _, pool in runtime.fleet.pools()
        if (body.pool is None or pool.name == body.pool)
        and (body.node is None or any(member.agent == body.node for member in pool.members))
    ]
    if not found:
        raise HTTPException(404, f"no pool is called {body.pool!r} on node {body.node!r}")
    return found


def _member(runtime: Runtime, name: str) -> Member:
    for _, _, member in runtime.fleet.members():
        if member.law.name == name:
            return member
    raise HTTPException(404, f"no instance is called {name!r}")
