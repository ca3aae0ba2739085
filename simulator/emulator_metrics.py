"""Pure: the /metrics pages of emulated engines, with the names and labels of vLLM 0.32 and TGI 3.3."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulator.histogram import Histogram


@dataclass(frozen=True, slots=True)
class VllmState:
    """What the page shows."""

    model: str
    running: int
    waiting: int
    kv_usage_ratio: float
    asleep: bool
    block_size: int
    kv_capacity_tokens: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    finished: Sequence[tuple[str, int]]  # reason, count
    rejected: int
    histograms: Sequence[tuple[str, str, Histogram]]  # name, help, observations


def vllm_page(state: VllmState) -> bytes:
    labels = f'engine="0",model_name="{state.model}"'
    lines = [*_vllm_gauges(state, labels), *_vllm_counters(state, labels)]
    for name, text, histogram in state.histograms:
        lines += _histogram(name, text, labels, histogram)
    return "\n".join((*lines, "")).encode()


def _vllm_gauges(state: VllmState, labels: str) -> list[str]:
    reasons = [(f'{labels},reason="capacity"', state.waiting), (f'{labels},reason="deferred"', 0)]
    sleep = [
        (f'{labels},sleep_state="awake"', int(not state.asleep)),
        (f'{labels},sleep_state="weights_offloaded"', int(state.asleep)),
        (f'{labels},sleep_state="discard_all"', 0),
    ]
    cache = (
        f'block_size="{state.block_size}",enable_prefix_caching="False",engine="0",'
        f'kv_cache_size_tokens="{state.kv_capacity_tokens}",'
        f'num_gpu_blocks="{state.kv_capacity_tokens // state.block_size}"'
    )
    return [
        *_one("gauge", "vllm:num_requests_running", "Requests in execution.", labels, state.running),
        *_one("gauge", "vllm:num_requests_waiting", "Requests waiting.", labels, state.waiting),
        *_many("gauge", "vllm:num_requests_waiting_by_reason", "Waiting requests by reason.", reasons),
        *_many("gauge", "vllm:engine_sleep_state", "Engine sleep state.", sleep),
        *_one("gauge", "vllm:kv_cache_usage_perc", "KV-cache usage, 0 to 1.", labels, state.kv_usage_ratio),
        *_one("gauge", "vllm:cache_config_info", "Information of the CacheConfig.", cache, 1),
    ]


def _vllm_counters(state: VllmState, labels: str) -> list[str]:
    finished = [
        (f'engine="0",finished_reason="{why}",model_name="{state.model}"', n) for why, n in state.finished
    ]
    rejected = f'model_name="{state.model}",reason="max_num_queued_reqs"'
    totals = (
        ("vllm:prefix_cache_queries_total", "Prefix cache queries, tokens.", 0),
        ("vllm:prefix_cache_hits_total", "Prefix cache hits, tokens.", 0),
        ("vllm:num_preemptions_total", "Preemptions.", state.preemptions),
        ("vllm:prompt_tokens_total", "Prefill tokens processed.", state.prompt_tokens),
        ("vllm:generation_tokens_total", "Generation tokens.", state.generation_tokens),
    )
    return [
        *(line for name, text, value in totals for line in _one("counter", name, text, labels, value)),
        *_many("counter", "vllm:request_success_total", "Requests answered.", finished),
        *_one("counter", "vllm:admission_rejections_total", "Refused by a limit.", rejected, state.rejected),
    ]


@dataclass(frozen=True, slots=True)
class TgiState:
    running: int
    waiting: int
    held_tokens: int
    capacity_tokens: int
    requests: int
    succeeded: int
    overloaded: int
    dropped: int
    histograms: Sequence[tuple[str, str, Histogram]]


def tgi_page(state: TgiState) -> bytes:
    failures = [('err="overloaded"', state.overloaded), ('err="dropped"', state.dropped)]
    lines = [
        *_one("gauge", "tgi_queue_size", "Requests in the queue.", "", state.waiting),
        *_one("gauge", "tgi_batch_current_size", "Requests in the batch.", "", state.running),
        *_one(
            "gauge", "tgi_batch_current_max_tokens", "Tokens the batch may grow to.", "", state.held_tokens
        ),
        *_one("gauge", "tgi_batch_total_tokens", "Tokens a batch may hold.", "", state.capacity_tokens),
        *_one("counter", "tgi_request_count", "Requests.", "", state.requests),
        *_one("counter", "tgi_request_success", "Requests answered.", "", state.succeeded),
        *_many("counter", "tgi_request_failure", "Requests that failed.", failures),
    ]
    for name, text, histogram in state.histograms:
        lines += _histogram(name, text, "", histogram)
    return "\n".join((*lines, "")).encode()


def _one(kind: str, name: str, text: str, labels: str, value: float) -> list[str]:
    return _many(kind, name, text, [(labels, value)])


def _many(kind: str, name: str, text: str, series: Iterable[tuple[str, float]]) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in series:
        lines.append(f"{name}{{{labels}}} {float(value)}" if labels else f"{name} {float(value)}")
    return lines


def _histogram(name: str, text: str, labels: str, histogram: Histogram) -> list[str]:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
    before = f"{labels}," if labels else ""
    seen = 0
    for bound, count in zip([*map(str, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        seen += count
        lines.append(f'{name}_bucket{{{before}le="{bound}"}} {float(seen)}')
    suffix = f"{{{labels}}}" if labels else ""
    return [*lines, f"{name}_count{suffix} {float(seen)}", f"{name}_sum{suffix} {histogram.total}"]
