"""Shell: what overload does to goodput, to those refused and to other tenants; an emulated fleet, real time.

    scripts/bench overload [--json FILE]

Two emulated instances with eight sequences each in one pool that sheds; Poisson arrivals of short chats that
stream. Capacity is measured first, with as many clients as there are slots. Goodput counts answers whose TTFT
and TPOT met their objectives.

What a tenant's late first tokens are made of is told apart: `queue` is the product's, `engine` what followed
until the first token; `outside` is what the client saw beyond that, and `waited_ratio` the share of the time
in which a process could have run and had no processor: the machine's.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.gateway import COMMAND, PROFILE
from benchmarks.processes import running, wait_until_ready
from simulator.children import free_ports

INSTANCES, SLOTS = 2, 8
TOKENS = 40
TTFT, TPOT = 0.25, 0.1  # objectives, seconds
TIMES = 3.0  # overload
HEAVY = 10.0  # times the load of the other tenant


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. Times are seconds since it was due; None: it never came."""

    id: str
    due: float
    status: int
    first: float | None
    end: float
    whole: bool

    @property
    def good(self) -> bool:
        if not self.whole or self.first is None:
            return False
        return self.first <= TTFT and (self.end - self.first) / (TOKENS - 1) <= TPOT


async def ask(port: int, key: str, due: float) -> Seen:
    """One streamed chat over a connection of its own."""
    name = f"{key}-{random.getrandbits(64):x}"
    chat = {
        "model": "m",
        "stream": True,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": f"question {name}"}],
    }
    body = json.dumps(chat).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"authorization: Bearer {key}\r\nx-request-id: {name}\r\n"
        f"x-joulegate-true-output-tokens: {TOKENS}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    status, first, data = 0, None, b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        while read := await reader.read(65536):
            if not data:
                status = int(read[9:12])
            data += read
            if first is None and status == 200 and b'"content":"' in data:
                first = monotonic() - due
        writer.close()
    except OSError:
        pass
    return Seen(name, due, status, first, monotonic() - due, b"data: [DONE]" in data)


async def paced(port: int, key: str, rate: float, seconds: float, rng: random.Random) -> list[Seen]:
    """Poisson arrivals, sent whatever becomes of the others."""
    tasks = []
    due, end = monotonic(), monotonic() + seconds
    while (due := due + rng.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - monotonic()))
        tasks.append(asyncio.create_task(ask(port, key, due)))
    return list(await asyncio.gather(*tasks))


async def capacity(port: int, seconds: float) -> float:
    """Requests a second with every slot taken."""
    end = monotonic() + seconds

    async def one() -> int:
        done = 0
        while monotonic() < end:
            done += (await ask(port, "one", monotonic())).status == 200
        return done

    return sum(await asyncio.gather(*(one() for _ in range(INSTANCES * SLOTS)))) / seconds


def goodput(seen: Sequence[Seen], seconds: float) -> float:
    return sum(one.good for one in seen) / seconds


def quantile(values: Sequence[float], q: float) -> float | None:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else None


def firsts(seen: Sequence[Seen]) -> list[float]:
    return [one.first for one in seen if one.first is not None]


def normal_after(seen: Sequence[Seen], start: float) -> float:
    """Seconds from `start` to the last request that was not good."""
    return max((one.due - start for one in seen if not one.good), default=0.0)


def records(port: int) -> dict[str, dict[str, Any]]:
    """The latest requests, as the gateway saw them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/admin/requests?last=1000") as page:
        return {record["id"]: record for record in json.load(page)["requests"]}


def parts(seen: Sequence[Seen], known: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """p99 of first tokens in seconds, and of what each is made of."""
    both = [(one.first, known[one.id]) for one in seen if one.first is not None and one.id in known]
    inside = [(first, record["actual"]["ttft_s"], record["queued_s"]) for first, record in both]
    told = [(first, ttft, queued) for first, ttft, queued in inside if ttft is not None]
    return {
        "ttft": quantile(firsts(seen), 0.99),
        "queue": quantile([queued for _, _, queued in told], 0.99),
        "engine": quantile([ttft - queued for _, ttft, queued in told], 0.99),
        "outside": quantile([first - ttft for first, ttft, _ in told], 0.99),
    }


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that a process ran, and that it was ready to run and had no processor."""
    threads = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(ran) for ran, _, _ in threads) / 1e9, sum(int(waited) for _, waited, _ in threads) / 1e9


async def two(
    port: int, rates: tuple[float, float], seconds: float, rng: random.Random, pids: Mapping[str, int]
) -> tuple[list[Seen], list[Seen], dict[str, object]]:
    """Two tenants at a time; of the first one, what its first tokens are made of."""
    before = {name: scheduled(pid) for name, pid in pids.items()}
    one, other = await asyncio.gather(
        paced(port, "one", rates[0], seconds, rng), paced(port, "two", rates[1], seconds, rng)
    )
    shares = {}
    for name, pid in pids.items():
        (ran, waited), (ran_before, waited_before) = scheduled(pid), before[name]
        shares[name] = {
            "ran_ratio": (ran - ran_before) / seconds,
            "waited_ratio": (waited - waited_before) / seconds,
        }
    made_of = {"p99_s": parts(one, await asyncio.to_thread(records, port)), "processes": shares}
    return one, other, made_of


async def measure(
    port: int, seconds: float, rng: random.Random, pids: Mapping[str, int]
) -> dict[str, object]:
    await capacity(port, 3.0)  # lengths and load are learned
    most = await capacity(port, seconds)
    below = await paced(port, "one", 0.9 * most, seconds, rng)
    peak = max(goodput(below, seconds), goodput(await paced(port, "one", most, seconds, rng), seconds))
    over = await paced(port, "one", TIMES * most, seconds, rng)
    start = monotonic()
    after = await paced(port, "one", 0.7 * most, seconds, rng)
    light, long = 0.15 * most, 2 * seconds
    alone, _, made_alone = await two(port, (light, light), long, rng, pids)
    beside, heavy, made_beside = await two(port, (light, HEAVY * light), long, rng, pids)
    refused = [one.end for one in over if one.status in (429, 503)]
    return {
        "capacity_per_s": most,
        "peak_goodput_per_s": peak,
        "overload_goodput_ratio": goodput(over, seconds) / peak if peak else None,
        "overload_refused": len(refused),
        "overload_requests": len(over),
        "overload_lost": sum(one.status == 0 or (one.status == 200 and not one.whole) for one in over),
        "refused_after_s_p50": quantile(refused, 0.5),
        "refused_after_s_p99": quantile(refused, 0.99),
        "normal_after_s": normal_after(after, start),
        "tenant_ttft_s_p99": quantile(firsts(alone), 0.99),
        "tenant_ttft_s_p99_beside_ten_times": quantile(firsts(beside), 0.99),
        "tenant_good_ratio": goodput(alone, long) / light,
        "tenant_good_ratio_beside_ten_times": goodput(beside, long) / light,
        "heavy_good_ratio": goodput(heavy, long) / (HEAVY * light),
        "tenant_made_of": made_alone,
        "tenant_made_of_beside_ten_times": made_beside,
    }


def fleet(folder: Path, ports: Sequence[int]) -> dict[str, object]:
    node = {"name": "n", "plant": str(folder / "plant"), "gpus": INSTANCES, "profile": str(PROFILE)}
    instances = [
        {
            "name": f"i{n}",
            "port": port,
            "model": "m",
            "profile": str(PROFILE),
            "gpus": [f"n/{n}"],
            "max_num_seqs": SLOTS,
        }
        for n, port in enumerate(ports)
    ]
    return {"version": 1, "seed": 1, "nodes": [node], "instances": instances}


def gateway(port: int, engines: Sequence[int]) -> dict[str, object]:
    instances = [
        {
            "name": f"i{n}",
            "url": f"http://127.0.0.1:{engine}",
            "emulated": True,
            "slots": SLOTS,
            "profile": str(PROFILE),
        }
        for n, engine in enumerate(engines)
    ]
    keys = [{"name": name, "key": name} for name in ("one", "two")]
    ttft = dict.fromkeys(("short", "medium", "long"), TTFT * 1e3)
    pool = {"name": "all", "mode": "observe", "overload": "shed", "instances": instances}
    return {
        "version": 1,
        "listen": {"port": port},
        "auth": {"keys": keys},
        "objectives": {"ttft_ms": ttft, "tpot_ms": TPOT * 1e3},
        "models": [{"name": "m", "pools": [pool]}],
    }


def run(seconds: float) -> dict[str, object]:
    """Start the fleet and the gateway, measure, stop both."""
    with tempfile.TemporaryDirectory() as name:
        folder, (port, *engines) = Path(name), free_ports(1 + INSTANCES)
        # JSON is YAML.
        (folder / "fleet.yaml").write_text(json.dumps(fleet(folder, engines)))
        (folder / "gateway.yaml").write_text(json.dumps(gateway(port, engines)))
        emulate = [str(COMMAND), "emulate", "-c", str(folder / "fleet.yaml")]
        serve = [str(COMMAND), "serve", "-c", str(folder / "gateway.yaml")]
        with running(emulate, folder / "emulate.log") as fleet_process:
            wait_until_ready(fleet_process, engines[-1], "/health", folder / "emulate.log")
            with running(serve, folder / "serve.log") as process:
                wait_until_ready(process, port, "/readyz", folder / "serve.log")
                pids = {"gateway": process.pid, "engines": fleet_process.pid, "clients": os.getpid()}
                return asyncio.run(measure(port, seconds, random.Random(1), pids))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    text = json.dumps(run(options.seconds), indent=1) + "\n"
    sys.stdout.write(text)
    if options.json:
        options.json.write_text(text)


if __name__ == "__main__":
    main()
