"""Run the compose profile `emulated` without Docker: same commands, same paths, in namespaces of its own.

    sudo .venv/bin/python deploy/emulated_without_docker.py

One request goes through; then it prints what the gateway's metrics say of requests and clocks. Needs root (or
`unshare --map-root-user`), util-linux and iproute2. What it leaves is the empty folders it mounts on.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from joulegate.settings import locate

ROOT = Path(__file__).parent.parent
PROFILE = "emulated"
GATEWAY = "http://gateway:8080"
PATIENCE = 60.0  # seconds until the gateway must be ready
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def main() -> None:
    if "--inside" not in sys.argv:
        inside = [sys.executable, __file__, "--inside"]
        flags = ["--mount", "--net", "--pid", "--fork", "--mount-proc"]
        flags += ["--map-root-user"] if os.geteuid() else []
        sys.exit(subprocess.call(["unshare", *flags, *inside]))
    services = services_of_profile()
    furnish(services)
    logs = Path(tempfile.mkdtemp(prefix="joulegate-compose-"))
    processes = {name: start(services[name], logs / name) for name in in_order(services)}
    try:
        wait_until_ready(processes, logs)
        sys.stdout.write(answer() + "\n")
        time.sleep(2.0)  # a few control ticks
        sys.stdout.write(metrics("joulegate_requests_total", "joulegate_gpu_clock_target_hertz"))
    finally:
        for process in reversed(processes.values()):
            process.terminate()
            process.wait(timeout=30)


def services_of_profile() -> dict[str, Any]:
    """Our own services; their images are this checkout."""
    document = locate.read("docker-compose.yml", (ROOT / "docker-compose.yml").read_text(), os.environ)
    assert isinstance(document.value, dict)
    found: dict[str, Any] = document.value["services"]
    return {
        name: service
        for name, service in found.items()
        if PROFILE in service.get("profiles", ()) and str(service["image"]).startswith("joulegate")
    }


def in_order(services: dict[str, Any]) -> list[str]:
    """Names of the services with a command; what one depends on comes before it."""
    done: list[str] = []
    while len(done) < len(services):
        for name, service in services.items():
            if name not in done and all(other in done for other in service.get("depends_on", {})):
                done.append(name)
    return [name for name in done if "command" in services[name]]


def furnish(services: dict[str, Any]) -> None:
    """Volumes at their paths, service names in /etc/hosts, a loopback network."""
    run("mount", "--make-rprivate", "/")
    for volume in {volume for service in services.values() for volume in service.get("volumes", ())}:
        source, target, *_ = volume.split(":")
        Path(target).mkdir(parents=True, exist_ok=True)
        if source.startswith("./"):
            run("mount", "--bind", str(ROOT / source), target)
        else:
            run("mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", target)
    hosts = Path("/run/joulegate/hosts")
    hosts.write_text(f"127.0.0.1 localhost gateway {' '.join(services)}\n")
    run("mount", "--bind", str(hosts), "/etc/hosts")
    run("ip", "link", "set", "lo", "up")


def start(service: Any, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "joulegate", *service["command"]]
    environment = {**os.environ, **{k: v or "" for k, v in service.get("environment", {}).items()}}
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=stderr)
    plant = Path("/plant/node")
    while service["command"][0] == "emulate" and not plant.exists() and process.poll() is None:
        time.sleep(0.1)  # where Docker is, `restart: always` tries again
    return process


def wait_until_ready(processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for name in [name for name, process in processes.items() if process.poll() is not None]:
            sys.exit(f"{name} ended:\n{(logs / name).read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{GATEWAY}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    sys.exit(f"the gateway is not ready; logs are in {logs}")


def answer() -> str:
    body = {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{GATEWAY}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as reply:
        usage = json.load(reply)["usage"]
        served = reply.headers["x-joulegate-instance"]
    return f"served by {served}: {usage['prompt_tokens']} + {usage['completion_tokens']} tokens"


def metrics(*names: str) -> str:
    with urllib.request.urlopen(f"{GATEWAY}/metrics", timeout=5) as reply:
        lines = reply.read().decode().splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(names))


def run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
