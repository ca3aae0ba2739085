"""Shell: what overload does to goodput, to those refused and to other tenants; an emulated fleet, real time.

    scripts/bench overload [--json FILE]

Two emulated instances with eight sequences each in one pool that sheds; Poisson arrivals of short chats that
stream. Capacity is measured first, with as many clients as there are slots. Goodput counts answers whose TTFT
and TPOT met their objectives.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from benchmarks.gateway import COMMAND, PROFILE
from benchmarks.processes import free_ports, running, wait_until_ready

INSTANCES, SLOTS = 2, 8
TOKENS = 40
TTFT, TPOT = 0.25, 0.1  # objectives, seconds
TIMES = 3.0  # overload
HEAVY = 10.0  # times the load of the other tenant


@dataclass(frozen=True, slots=True)
class Seen:
    """One request. Times are seconds since it was due; None: it never came."""

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
    content = f"question {random.random()}"
    chat = {
        "model": "m",
        "stream": True,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": content}],
    }
    body = json.dumps(chat).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"authorization: Bearer {key}\r\n"
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
    return Seen(due, status, first, monotonic() - due, b"data: [DONE]" in data)


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


async def measure(port: int, seconds: float, rng: random.Random) -> dict[str, object]:
    await capacity(port, 3.0)  # lengths and load are learned
    most = await capacity(port, seconds)
    below = await paced(port, "one", 0.9 * most, seconds, rng)
    peak = max(goodput(below, seconds), goodput(await paced(port, "one", most, seconds, rng), seconds))
    over = await paced(port, "one", TIMES * most, seconds, rng)
    start = monotonic()
    after = await paced(port, "one", 0.7 * most, seconds, rng)
    light = 0.15 * most
    alone, _ = await asyncio.gather(
        paced(port, "one", light, 2 * seconds, rng), paced(port, "two", light, 2 * seconds, rng)
    )
    beside, heavy = await asyncio.gather(
        paced(port, "one", light, 2 * seconds, rng), paced(port, "two", HEAVY * light, 2 * seconds, rng)
    )
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
        "tenant_good_ratio": goodput(alone, 2 * seconds) / light,
        "tenant_good_ratio_beside_ten_times": goodput(beside, 2 * seconds) / light,
        "heavy_good_ratio": goodput(heavy, 2 * seconds) / (HEAVY * light),
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
                return asyncio.run(measure(port, seconds, random.Random(1)))


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
