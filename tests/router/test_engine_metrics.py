import pytest

from router.engine_metrics import Gauges, read_gauges
from router.ports import Engine

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="discard_all"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
vllm:cache_config_info{_block_size_resolved="True",block_size="16",num_gpu_blocks="100",x="1"} 1.0
"""


def test_several_engines_on_one_page_are_summed_and_kv_is_the_highest() -> None:
    gauges = read_gauges(VLLM, Engine.VLLM)
    assert gauges == Gauges(running=7, waiting=2, kv_usage=0.5, kv_capacity_tokens=1600)


def test_a_sleeping_engine_says_so() -> None:
    page = VLLM.replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0')
    assert read_gauges(page, Engine.VLLM).asleep


def test_tgi_reads_kv_as_the_share_of_batch_tokens() -> None:
    page = b"tgi_batch_current_size 5\ntgi_queue_size 1\n"
    page += b"tgi_batch_current_max_tokens 500\ntgi_batch_total_tokens 2000\n"
    assert read_gauges(page, Engine.TGI) == Gauges(running=5, waiting=1, kv_usage=0.25)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>not metrics</html>",
        b"vllm:num_requests_running{} NaN\nvllm:num_requests_waiting{} -1\n",
        b"vllm:num_requests_running",
        b"vllm:num_requests_running{engine=\x00 1e99\n",
    ],
)
def test_garbage_is_unknown_not_zero(page: bytes) -> None:
    assert read_gauges(page, Engine.VLLM) == Gauges()


def test_a_page_may_say_when_its_process_began() -> None:
    assert read_gauges(VLLM + b"process_start_time_seconds 1.76e+09\n", Engine.VLLM).started == 1.76e9
