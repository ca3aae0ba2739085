"""Pure: the few series of an engine's /metrics page that control needs, found without parsing the page.

vLLM's page is 71 KB; a full parse costs 10 ms of the event loop, finding these lines tens of microseconds.
Several engines (data parallel) on one page: counts are summed, KV usage is the highest.
"""

from dataclasses import dataclass

from router.ports import Engine

MAX_PAGE = 4 * 1024 * 1024  # bytes; a larger page is refused, not searched


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine says of itself. None: it does not say."""

    running: int | None = None
    waiting: int | None = None
    kv_usage: float | None = None  # share of KV tokens in use, 0-1
    kv_capacity_tokens: int | None = None
    asleep: bool = False
    generated: float | None = None  # output tokens since it began
    accepted: float | None = None  # of those, from drafts (speculative decoding); None: it makes none
    started: float | None = None  # unix time at which its process began


def read_gauges(page: bytes, engine: Engine) -> Gauges:
    """The gauges on a Prometheus text page. Garbage reads as "does not say", never as zero."""
    if engine is Engine.TGI:
        return _tgi(page)
    if engine is Engine.VLLM:
        return _vllm(page)
    return Gauges()


def _vllm(page: bytes) -> Gauges:
    running, waiting = (
        _samples(page, b"vllm:num_requests_running"),
        _samples(page, b"vllm:num_requests_waiting"),
    )
    kv = _samples(page, b"vllm:kv_cache_usage_perc")
    generated = _samples(page, b"vllm:generation_tokens_total")
    accepted = _samples(page, b"vllm:spec_decode_num_accepted_tokens_total")
    awake = _samples(page, b"vllm:engine_sleep_state", b'sleep_state="awake"')
    started = _samples(page, b"process_start_time_seconds")
    return Gauges(
        running=_count(running),
        waiting=_count(waiting),
        kv_usage=max(kv) if kv else None,
        kv_capacity_tokens=_kv_tokens(page),
        asleep=bool(awake) and max(awake) == 0.0,
        generated=sum(generated) if generated else None,
        accepted=sum(accepted) if accepted else None,
        started=max(started) if started else None,
    )


def _tgi(page: bytes) -> Gauges:
    size, queue = _samples(page, b"tgi_batch_current_size"), _samples(page, b"tgi_queue_size")
    used, total = _samples(page, b"tgi_batch_current_max_tokens"), _samples(page, b"tgi_batch_total_tokens")
    usage = min(1.0, sum(used) / sum(total)) if used and total and sum(total) > 0 else None
    return Gauges(running=_count(size), waiting=_count(queue), kv_usage=usage)


def _count(samples: list[float]) -> int | None:
    return int(sum(samples)) if samples else None


def _samples(page: bytes, name: bytes, having: bytes = b"") -> list[float]:
    """Values of the series `name`, with labels or without, on lines that contain `having`."""
    values: list[float] = []
    start = 0
    while (at := page.find(name, start)) >= 0:
        end = page.find(b"\n", at)
        end = len(page) if end < 0 else end
        start = end
        if at > 0 and page[at - 1] != 10:  # inside a HELP line or another name
            continue
        line = page[at:end]
        if line[len(name) : len(name) + 1] not in (b"{", b" ") or having not in line:
            continue  # a longer name (_by_reason, _created) or another label
        try:
            value = float(line.rsplit(b" ", 1)[1])
        except (ValueError, IndexError):
            continue
        if 0.0 <= value < 1e15:  # also refuses NaN
            values.append(value)
    return values


def _kv_tokens(page: bytes) -> int | None:
    """Tokens the KV cache holds, from the labels of vllm:cache_config_info."""
    at = page.find(b"\nvllm:cache_config_info{")
    if at < 0:
        return None
    line = page[at + 1 : page.find(b"\n", at + 1)]
    blocks, size = _label(line, b"num_gpu_blocks"), _label(line, b"block_size")
    return blocks * size if blocks and size else None


def _label(line: bytes, name: bytes) -> int | None:
    for before in (b",", b"{"):
        at = line.find(before + name + b'="')
        if at >= 0:
            break
    else:
        return None
    first = at + len(name) + 3
    value = line[first : line.find(b'"', first)]
    return int(value) if value.isdigit() and len(value) < 12 else None
