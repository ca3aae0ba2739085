"""What the targets are made for: the first inputs, from which others are bred."""

from joulegate.wire import BoostRequest, GpuState, SyncReply, SyncRequest
from tests.fakes.engine import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, USAGE, answer, chunk, event

ERROR = b'data: {"error":{"message":"boom","type":"t","param":null,"code":500}}\n\n'
TYPED = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n'
BLOCK = b'event: content_block_delta\r\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\r\n\r\n'
TOKEN = b'data:{"index":1,"token":{"id":1,"text":"a"},"generated_text":null,"details":null}\n\n'
PAGE = (
    b"# HELP vllm:num_requests_running x\n"
    b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
    b'vllm:num_requests_waiting{engine="0",model_name="m"} 1.0\n'
    b'vllm:num_requests_waiting_by_reason{reason="capacity"} 1.0\n'
    b'vllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    b'vllm:engine_sleep_state{sleep_state="awake"} 1.0\n'
    b'vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1.0\n'
    b"tgi_batch_current_size 2\ntgi_queue_size 1\n"
    b"tgi_batch_current_max_tokens 10\ntgi_batch_total_tokens 20\n"
)
GPU = GpuState(
    uuid="GPU-1",
    index=0,
    name="H100",
    clock_mhz=1200,
    ceiling_mhz=1500,
    power_w=300.0,
    energy_j=5.0,
    temperature_c=50.0,
    observed_at_s=1.0,
)
CHATS = (
    b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}],"max_tokens":5,"n":2}',
    b'{"model":"m","messages":[{"role":"system","content":[{"type":"text","text":"a"}]}],"tools":[{}]}',
    b'{"model":"m","prompt":[1,2,3],"stop":["a"],"stream_options":{"include_usage":true}}',
    b'{"model":"m","input":"hi","previous_response_id":"r","response_format":{"type":"json_object"}}',
    b'{"inputs":"hi","parameters":{"max_new_tokens":5}}',
    b'{"model":"\\ud800","prompt":"\\udfff"}',
)

SEEDS: dict[str, tuple[bytes, ...]] = {
    "sse": tuple(
        bytes([how, route, flags]) + stream
        for how, flags in ((0, 0), (1, 1), (7, 1))
        for route, stream in enumerate(
            (
                TOKEN + ERROR,
                TOKEN,
                ROLE + event("a") + USAGE + DONE,
                event("a") + ERROR + DONE,
                BLOCK,
                TYPED,
                b": note\r\n\r\ndata: a\rdata: b\r\r",
            )
        )
    ),
    "head": tuple(
        bytes([how]) + data
        for how in (0, 3)
        for data in (
            answer(b'{"a":1}'),
            STREAM_HEAD + chunk(event("a")) + LAST_CHUNK,
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            b"HTTP/1.0 200 OK\r\n\r\nuntil the end",
            STREAM_HEAD + chunk(b"x") + b"0\r\nTrailer: y\r\n\r\n",
            b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        )
    ),
    "client": tuple(
        bytes([how]) + data
        for how in (0, 3)
        for data in (
            b"GET /x?y=z HTTP/1.1\r\nHost: a:1\r\n\r\n",
            b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
            b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n"
            b"X: y\r\n\r\n",
            b"GET http://a/x HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"HEAD / HTTP/1.0\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        )
    ),
    "metrics": (PAGE,),
    "sync": (
        SyncRequest(holder="a", lease=3, targets={"GPU-1": 900, "GPU-2": None}, groups=(("GPU-1",),))
        .model_dump_json()
        .encode(),
        SyncReply(lease=1, expires_in_s=2.0, restarts=1, gpus=(GPU,)).model_dump_json().encode(),
        BoostRequest(holder="a", floors={"GPU-1": 900}).model_dump_json().encode(),
        b'{"v":1,"loads":{"a":[1,1,300,12.5,0.2],"b":[2,0,0,1.0,null]}}',
        b'{"v":1,"loads":{}}',
    ),
    "request": tuple(bytes([route]) + body for route in range(6) for body in CHATS),
}
