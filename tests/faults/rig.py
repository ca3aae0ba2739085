"""A gateway as a process, with emulated engines, an agent and its watchdog; and what can be seen of it all.

main    pool `small`: instance `near`, behind a front that can misbehave (its name resolves by a file)
        pool `large`: instance `far`; both on GPUs of one node, clocks enforced
spare   one pool: `k1` and `k2`, an emulator process each, to be killed; no clocks
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from gpu_agent.plant import Plant
from joulegate.shipped import shipped
from joulegate.units import Seconds
from simulator.children import Child, free_ports, joulegate
from tests.faults.front import Background, Front

PROFILE = shipped("profiles/h100_llama-3.1-8b_tp1.json")
TOP = 1980
SILENCE = 2.5  # seconds an instance may be silent
PATIENCE = 90.0  # seconds a condition is waited for
START = 200.0  # seconds for all processes to start, on a machine that others load
SMALL = ["SS", "SM", "MS", "MM"]
LARGE = ["SL", "ML", "LS", "LM", "LL"]
MATES = {"near": ("main", "far"), "far": ("main", "near"), "k1": ("spare", "k2"), "k2": ("spare", "k1")}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client saw."""

    status: int  # 0: no answer
    headers: dict[str, str]
    body: str
    cut: bool  # the connection ended before the answer did
    seconds: float
    began: float = 0.0  # on the monotonic clock
    first: float = 0.0  # seconds to the first bytes of the body

    @property
    def instance(self) -> str:
        return self.headers.get("x-joulegate-instance", "")

    @property
    def code(self) -> object:
        return json.loads(self.body)["error"]["code"]

    @property
    def events(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.body.split("\n\n") if event]

    @property
    def ends_in_error(self) -> bool:
        """One error event, then [DONE], and nothing after it."""
        *_, error, last = ["", "", *self.events]
        return last == "[DONE]" and error.startswith('{"error"') and self.body.count('{"error"') == 1


def until(condition: Callable[[], object], patience: float = PATIENCE) -> float:
    """Seconds until it holds; the wait is bounded so that a failure is one."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + patience, f"never came true: {condition}"
        time.sleep(0.01)
    return time.monotonic() - start


class Gateway:
    """One replica: its process, and what it says."""

    def __init__(self, process: Child, port: int) -> None:
        self.process = process
        self.port = port
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, limits=httpx.Limits(max_connections=100)
        )

    def ask(
        self, model: str = "main", *, tokens: int = 3, stream: bool = False, bounded: bool = True
    ) -> Answer:
        """One chat completion, read to its end whatever that is. Not `bounded`: it may be of any length."""
        start = time.monotonic()
        status, headers, parts, cut, first = 0, dict[str, str](), list[str](), False, 0.0
        asked = body(model, tokens if bounded else None, stream)
        try:
            with self.http.stream(
                "POST", "/v1/chat/completions", json=asked, headers=forced(tokens)
            ) as answer:
                status, headers = answer.status_code, dict(answer.headers)
                for part in answer.iter_text():
                    first = first or time.monotonic() - start
                    parts.append(part)
        except httpx.HTTPError:
            cut = True
        return Answer(status, headers, "".join(parts), cut, time.monotonic() - start, start, first)

    def picture(self) -> dict[str, object]:
        """/admin/fleet; {} while it does not answer."""
        try:
            found: dict[str, object] = self.http.get("/admin/fleet", timeout=5.0).json()
        except httpx.HTTPError:
            return {}
        return found

    def instances(self) -> dict[str, dict[str, object]]:
        models = self.picture().get("models", [])
        assert isinstance(models, list)
        return {i["name"]: i for m in models for p in m["pools"] for i in p["instances"]}

    def gauge(self, name: str) -> float:
        """Sum over the labels of one metric."""
        page = self.http.get("/metrics").text.splitlines()
        mine = [line for line in page if line.startswith((name + "{", name + " "))]
        return sum(float(line.rpartition(" ")[2]) for line in mine)

    def in_flight(self) -> float:
        return self.gauge("joulegate_running_requests") + self.gauge("joulegate_queue_requests")

    def drain(self, instance: str, *, resume: bool = False) -> None:
        body = {"instance": instance, "resume": resume}
        self.http.post("/admin/drain", json=body).raise_for_status()

    def _knock(self) -> None:
        """Who was down is up once somebody was served there: also `far`, which is asked for nothing else."""
        for name, found in self.instances().items():
            if found["health"] == "probation":
                model, mate = MATES[name]
                self.drain(mate)
                self.ask(model)
                self.drain(mate, resume=True)

    def is_normal(self) -> bool:
        """Everything is up and nothing in flight; a request closes a half-open circuit."""
        try:
            if self.http.get("/readyz", timeout=5.0).status_code != 200:
                return False
            for model in ("main", "spare"):
                if self.ask(model).status != 200:
                    return False
            self._knock()
            up = all(found["health"] == "up" for found in self.instances().values())
            signs = [self.gauge("joulegate_agent_up"), self.gauge("joulegate_store_up")]
            return up and all(signs) and self.in_flight() == 0
        except httpx.HTTPError:
            return False


def body(model: str, tokens: int | None, stream: bool) -> dict[str, object]:
    """Never the same twice, so that no fingerprint is."""
    text = f"number {time.monotonic_ns()}"
    messages = [{"role": "user", "content": text}]
    bound = {} if tokens is None else {"max_tokens": tokens}
    return {"model": model, **bound, "stream": stream, "messages": messages}


def forced(tokens: int) -> dict[str, str]:
    return {"x-joulegate-true-output-tokens": str(tokens)}


class Site:
    """All of it. `gateways`: how many replicas; more than one share `redis_url`."""

    def __init__(self, folder: Path, library: Path, gateways: int = 1, redis_url: str | None = None) -> None:
        self.folder = folder
        self.redis_url = redis_url
        near, far, k1, k2, front, *ports = free_ports(5 + gateways)
        self.engine_ports = {"near": near, "far": far, "k1": k1, "k2": k2}
        self.background = Background()
        self.front = Front(self.background, ("127.0.0.1", front), ("127.0.0.1", near))
        self.elsewhere = Front(self.background, ("127.0.0.2", front), ("127.0.0.1", near))
        self.agent_front = Front(self.background, folder / "front.sock", folder / "agent.sock")
        self.address = folder / "address"
        self.move("127.0.0.1")
        self._write()
        self.engines = {name: self._child("emulate", "-c", f"{name}.yaml") for name in ("node", "k1", "k2")}
        self.agent = self._child("agent", "-c", "agent.yaml", "--with-watchdog")
        environment = {"LD_PRELOAD": str(library), "JOULEGATE_TEST_ADDRESS": str(self.address)}
        self.gateways = [
            Gateway(self._child("serve", "-c", f"gateway-{n}.yaml", environment=environment), port)
            for n, port in enumerate(ports)
        ]
        for n, port in enumerate(ports):
            self._write_gateway(n, port)

    def start(self) -> None:
        self.front.open()
        self.agent_front.open()
        for engine in self.engines.values():
            engine.start()
        for port in self.engine_ports.values():
            until(lambda port=port: is_up(port), START)  # type: ignore[misc]
        self.plant = Plant.open(self.folder / "node.plant")
        self.agent.start()
        for gateway in self.gateways:
            gateway.process.start()
        for gateway in self.gateways:
            until(gateway.is_normal, START)

    def stop(self) -> None:
        for gateway in self.gateways:
            gateway.http.close()
            gateway.process.stop()
        for process in (self.agent, *self.engines.values()):
            process.stop()
        for front in (self.front, self.elsewhere, self.agent_front):
            front.shut()
        self.background.close()

    @property
    def gateway(self) -> Gateway:
        return self.gateways[0]

    def ceilings(self) -> list[int]:
        """What `near` and `far` may clock to now, as the driver would have it."""
        return [gpu.clock_at(Seconds(time.monotonic())) for gpu in self.plant.gpus]

    def until(self, condition: Callable[[], object]) -> float:
        """As `until`; an agent ended by its watchdog is started again."""

        def holds() -> object:
            self.agent.revive()
            return condition()

        return until(holds)

    def governed(self) -> float:
        """Wait until both are below default."""
        return self.until(lambda: max(self.ceilings()) < TOP)

    def at_default(self, gpu: int | None = None) -> float:
        """Seconds until the GPU (none: both) has its default clock back."""
        return until(lambda: min(self.ceilings() if gpu is None else [self.ceilings()[gpu]]) == TOP)

    def settled(self) -> float:
        """Seconds until everything is normal again."""
        return max(self.until(gateway.is_normal) for gateway in self.gateways)

    def restart(self, engine: str) -> None:
        self.engines[engine].start()
        until(lambda: is_up(self.engine_ports[engine]))

    def move(self, address: str) -> None:
        self.address.write_text(address)

    @contextmanager
    def asking(self, model: str, *, tokens: int = 3, stream: bool = False) -> Iterator["Pending"]:
        """A request under way in a thread."""
        pending = Pending(lambda: self.gateway.ask(model, tokens=tokens, stream=stream))
        try:
            yield pending
        finally:
            pending.join()

    def _child(self, *words: str, environment: dict[str, str] | None = None) -> Child:
        return Child(joulegate(*words), self.folder / f"{words[0]}.log", self.folder, environment)

    def _write(self) -> None:
        name = {"near": "main", "far": "main", "k1": "spare", "k2": "spare"}
        on = {"near": "node/0", "far": "node/1", "k1": "k1/0", "k2": "k2/0"}
        for node in ("node", "k1", "k2"):
            mine = [one for one, gpu in on.items() if gpu.startswith(node)]
            instances = [
                {
                    "name": one,
                    "port": self.engine_ports[one],
                    "model": name[one],
                    "profile": str(PROFILE),
                    "gpus": [on[one]],
                }
                for one in mine
            ]
            plant = {
                "name": node,
                "plant": str(self.folder / f"{node}.plant"),
                "gpus": len(mine),
                "profile": str(PROFILE),
            }
            self._dump(f"{node}.yaml", {"version": 1, "seed": 1, "nodes": [plant], "instances": instances})
        agent = {
            "version": 1,
            "node": "node",
            "device": {"kind": "emulated", "plant": str(self.folder / "node.plant")},
            "allow_writes": True,
            "listen": {"unix": str(self.folder / "agent.sock")},
            "watchdog": {"socket": str(self.folder / "watchdog.sock")},
            "state_dir": str(self.folder / "state"),
        }
        self._dump("agent.yaml", agent)

    def _write_gateway(self, number: int, port: int) -> None:
        assert isinstance(self.front.listen, tuple)
        near = self._governed("near", f"http://engine.test:{self.front.listen[1]}", 0)
        far = self._governed("far", f"http://127.0.0.1:{self.engine_ports['far']}", 1)
        spare = [
            {"name": name, "url": f"http://127.0.0.1:{self.engine_ports[name]}", "emulated": True}
            for name in ("k1", "k2")
        ]
        governed = {"mode": "enforce", "timeouts": {"first_byte_s": SILENCE, "idle_s": SILENCE}}
        small = {"name": "small", "types": SMALL, "instances": [near], **governed}
        large = {"name": "large", "types": LARGE, "instances": [far], **governed}
        document: dict[str, object] = {
            "version": 1,
            "name": f"replica-{number}",
            "listen": {"port": port},
            "health": {"interval_s": 0.25, "timeout_s": 1.0},
            "retry": {"budget_pct": 100},
            "models": [
                {"name": "main", "pools": [small, large]},
                {"name": "spare", "pools": [{"name": "all", "instances": spare}]},
            ],
            "agents": [{"name": "node", "url": f"unix:{self.folder / 'front.sock'}"}],
            "control": {"holdback_pct": 0},
            "predictor": {"state_file": str(self.folder / f"learned-{number}.npz")},
            "store": {} if self.redis_url is None else {"redis_url": self.redis_url},
        }
        self._dump(f"gateway-{number}.yaml", document)

    def _governed(self, name: str, url: str, gpu: int) -> dict[str, object]:
        gpus = [f"GPU-node-{gpu}"]
        return {
            "name": name,
            "url": url,
            "emulated": True,
            "agent": "node",
            "gpus": gpus,
            "profile": str(PROFILE),
        }

    def _dump(self, name: str, document: object) -> None:
        (self.folder / name).write_text(json.dumps(document))  # JSON is YAML


class Pending:
    """An answer that is awaited elsewhere."""

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._answers: list[Answer] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(ask()))
        self._thread.start()

    def join(self) -> Answer:
        self._thread.join(PATIENCE)
        assert self._answers, "no end of the answer was seen"
        return self._answers[0]


def is_up(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2.0).status_code == 200
    except httpx.HTTPError:
        return False
