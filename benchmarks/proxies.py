"""Shell: whom the gateway is measured against, each with what a user would turn on and nothing more."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fake_upstream import MODEL
from benchmarks.processes import DidNotStart, running, wait_until_ready
from simulator.children import Child, free_ports

API_KEY = "sk-bench"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "joulegate"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where load is sent. `pid` is the root of the processes that are counted; None: there is no proxy."""

    name: str
    port: int
    pid: int | None
    rebuilds: bool = False  # makes events of its own instead of passing the engine's on


@dataclass(frozen=True, slots=True)
class Place:
    """What a proxy needs to start: the engines' ports, a folder of its own, and who stops it."""

    engines: tuple[int, ...]
    folder: Path
    stack: ExitStack

    def start(self, name: str, argv: list[str], ready: str, port: int) -> Child:
        log = self.folder / f"{name}.log"
        process = self.stack.enter_context(running(argv, log))
        wait_until_ready(process, port, ready, log)
        return process


def direct(place: Place) -> Proxy:
    return Proxy("direct", place.engines[0], None)


NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.error.log warn; worker_processes 1;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engines {{ {servers} keepalive 1024; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300s;
    }}
  }}
}}
"""


def nginx(place: Place) -> Proxy:
    (port,) = free_ports(1)
    servers = " ".join(f"server 127.0.0.1:{engine};" for engine in place.engines)
    file = place.folder / "nginx.conf"
    file.write_text(NGINX.format(folder=place.folder, servers=servers, port=port))
    command = "/usr/sbin/nginx" if Path("/usr/sbin/nginx").exists() else "nginx"
    argv = [command, "-p", str(place.folder), "-c", str(file), "-e", str(place.folder / "nginx.error.log")]
    return Proxy("nginx", port, place.start("nginx", argv, "/health", port).pid)


def pipe(place: Place) -> Proxy:
    """No proxy that anybody would use: what is left of one in Python when it does nothing."""
    (port,) = free_ports(1)
    engines = ",".join(map(str, place.engines))
    argv = [sys.executable, "-m", "benchmarks.pipe", "--port", str(port), "--engines", engines]
    return Proxy("pipe", port, place.start("pipe", argv, "/health", port).pid)


def peer(requirement: str) -> Path:
    """Folder of the commands of a peer from PyPI, in an environment of its own outside the tree."""
    venv = CACHE / requirement.replace("==", "-").replace("[", "-").replace("]", "")
    mark = venv / ".complete"
    if not mark.exists():
        sys.stderr.write(f"installing {requirement} into {venv}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", requirement]
        done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DidNotStart(f"pip could not install {requirement}:\n{done.stderr[-2000:]}")
        mark.touch()
    return venv / "bin"


def rust_router(name: str, version: str, place: Place) -> Proxy:
    """vllm-router and its parent sglang-router share their options. Round robin is their cheapest policy."""
    port, metrics = free_ports(2)
    module = {"vllm-router": "vllm_router", "sglang-router": "sglang_router"}[name]
    argv = [str(peer(f"{name}=={version}") / "python"), "-m", f"{module}.launch_router"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics)]
    level = {"vllm-router": "warning", "sglang-router": "warn"}[name]
    argv += ["--policy", "round_robin", "--log-level", level, "--worker-startup-check-interval", "1"]
    argv += ["--worker-urls", *(f"http://127.0.0.1:{engine}" for engine in place.engines)]
    return Proxy(name, port, place.start(name, argv, "/health", port).pid)


def vllm_router(place: Place) -> Proxy:
    return rust_router("vllm-router", "0.1.17", place)


def sglang_router(place: Place) -> Proxy:
    return rust_router("sglang-router", "0.3.2", place)


def litellm(place: Place) -> Proxy:
    (port,) = free_ports(1)
    entries = "".join(
        f"  - model_name: {MODEL}\n    litellm_params:\n      model: openai/{MODEL}\n"
        f"      api_base: http://127.0.0.1:{engine}/v1\n      api_key: none\n"
        for engine in place.engines
    )
    file = place.folder / "litellm.yaml"
    file.write_text("model_list:\n" + entries + "litellm_settings:\n  telemetry: false\n")
    argv = [str(peer("litellm[proxy]==1.100.0") / "litellm"), "--config", str(file)]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return Proxy("litellm", port, place.start("litellm", argv, "/health/liveliness", port).pid, rebuilds=True)


PEERS: dict[str, Callable[[Place], Proxy]] = {
    "direct": direct,
    "nginx": nginx,
    "pipe": pipe,
    "vllm-router": vllm_router,
    "sglang-router": sglang_router,
    "litellm": litellm,
}
