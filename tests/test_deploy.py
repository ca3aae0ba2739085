"""What ships for deployment fits the program: compose, image, Prometheus, Grafana, Kubernetes."""

import functools
import importlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import typer
from kubernetes import client
from pydantic import BaseModel, ConfigDict, Field
from ruamel.yaml import YAML

from joulegate.cli import COMMANDS
from joulegate.settings import locate
from joulegate.settings.load import load_with_places
from joulegate.settings.registry import kind_of, model_of
from router.observe import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROFILES = ("emulated", "single", "pools")
GPUS = {"GPU_SHORT": "GPU-a", "GPU_MEDIUM": "GPU-b", "GPU_LONG": "GPU-c"}  # what an operator puts into .env
METRIC = re.compile(r"\bjoulegate_\w+")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Condition(Strict):
    condition: Literal["service_started", "service_healthy", "service_completed_successfully"]


class Healthcheck(Strict):
    test: list[str] = Field(min_length=2)
    interval: str
    timeout: str
    retries: int
    start_period: str = "0s"


class Device(Strict):
    driver: Literal["nvidia"]
    count: Literal["all"] | int | None = None
    device_ids: list[str] | None = None
    capabilities: list[Literal["gpu", "utility"]]


class Reservations(Strict):
    devices: list[Device]


class Resources(Strict):
    reservations: Reservations


class Placement(Strict):
    resources: Resources


class Build(Strict):
    context: str
    dockerfile: str


class Logging(Strict):
    driver: Literal["json-file"]
    options: dict[str, str]


class Network(Strict):
    aliases: list[str]


class Service(Strict):
    """The part of the compose specification that docker-compose.yml uses."""

    image: str
    build: Build | None = None
    profiles: list[str] = []
    command: list[str] = []
    entrypoint: list[str] = []
    environment: dict[str, str | None] = {}
    volumes: list[str] = []
    ports: list[str] = []
    networks: dict[str, Network] = {}
    network_mode: Literal["none"] | None = None
    depends_on: dict[str, Condition] = {}
    healthcheck: Healthcheck | None = None
    deploy: Placement | None = None
    restart: Literal["always", "unless-stopped"]
    init: bool = False
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    cap_add: list[str] = []
    security_opt: list[str] = []
    user: str | None = None
    pid: str | None = None
    shm_size: str | None = None
    mem_limit: str | None = None
    pids_limit: int | None = None
    ulimits: dict[Literal["nofile"], int] = {}
    stop_grace_period: str | None = None
    logging: Logging

    @property
    def ours(self) -> bool:
        return self.image.startswith("joulegate:")


class DriverOptions(Strict):
    type: str
    device: str
    o: str


class Volume(Strict):
    driver_opts: DriverOptions | None = None


class Compose(BaseModel):
    """Keys that begin with x- hold what anchors share."""

    name: str
    services: dict[str, Service]
    volumes: dict[str, Volume | None]


@pytest.fixture(scope="module")
def compose() -> Compose:
    document = locate.read("docker-compose.yml", (ROOT / "docker-compose.yml").read_text(), {})
    assert document.problems == []
    assert isinstance(document.value, dict)
    assert all(key in Compose.model_fields or key.startswith("x-") for key in document.value)
    return Compose.model_validate(document.value)


def in_profile(compose: Compose, profile: str) -> dict[str, Service]:
    return {n: s for n, s in compose.services.items() if not s.profiles or profile in s.profiles}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_all_it_refers_to(compose: Compose, profile: str) -> None:
    services = in_profile(compose, profile)
    for service in services.values():
        assert set(service.depends_on) <= set(services)
        assert service.pid is None or service.pid.removeprefix("service:") in services
        named = {v.partition(":")[0] for v in service.volumes if not v.startswith("./")}
        assert named <= set(compose.volumes)
        for volume in (v for v in service.volumes if v.startswith("./")):
            assert (ROOT / volume.partition(":")[0]).exists(), volume
    gateways = [s for s in services.values() if s.command[:1] == ["serve"]]
    assert len(gateways) == 1
    assert gateways[0].networks["default"].aliases == ["gateway"]
    assert {"watchdog", "agent"} <= {s.command[0] for s in services.values() if s.command}


def test_every_service_is_in_a_profile_that_is_described(compose: Compose) -> None:
    assert {p for s in compose.services.values() for p in s.profiles} == set(PROFILES)


def stand_in(function: Callable[..., object]) -> Callable[..., object]:
    """Takes the arguments of a command and does nothing."""

    @functools.wraps(function)
    def recorded(**arguments: object) -> None:
        assert arguments

    return recorded


def test_every_command_line_is_one_the_program_takes(compose: Compose) -> None:
    checked = [s for s in compose.services.values() if s.ours and s.command]
    for service in checked:
        words, *arguments = service.command
        module, _, name = COMMANDS[words].target.partition(":")
        app = typer.Typer(add_completion=False)
        app.command()(stand_in(getattr(importlib.import_module(module), name)))
        app(arguments, standalone_mode=False)
    assert {s.command[0] for s in checked} == {"serve", "agent", "watchdog", "emulate"}


def test_every_mounted_settings_file_is_good(compose: Compose) -> None:
    for name, service in compose.services.items():
        if not service.ours or not service.command:
            continue
        inside = service.command[service.command.index("-c") + 1]
        file = outside(service, inside)
        environment = {key: value or "" for key, value in service.environment.items()}
        environment |= {key: value for key, value in GPUS.items() if key in environment}
        document = locate.read(str(file), file.read_text(), environment)
        settings = load_with_places(file, model_of(kind_of(document)), environment).settings
        assert settings.version == 1, name


def outside(service: Service, path: str) -> Path:
    """The file of the tree that a container sees at `path`."""
    for volume in service.volumes:
        source, target, *_ = volume.split(":")
        if PurePosixPath(path).is_relative_to(target) and source.startswith("./"):
            return ROOT / source / PurePosixPath(path).relative_to(target)
    raise AssertionError(f"{path} is not mounted")


def test_only_agent_and_watchdog_of_real_gpus_are_root(compose: Compose) -> None:
    privileged = {"gpu-agent", "watchdog"}
    for name, service in compose.services.items():
        if not service.ours:
            continue
        assert service.cap_drop == ["ALL"]
        assert service.read_only
        assert "no-new-privileges:true" in service.security_opt
        assert (service.user is not None) == (name in privileged)
        assert service.cap_add == (["SYS_ADMIN"] if name in privileged else [])
        if name in privileged:
            assert service.environment["NVIDIA_DRIVER_CAPABILITIES"] == "utility"
            assert service.network_mode == "none"
    stages = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)$", stages, re.MULTILINE) == ["10001:10001"]


def test_every_service_but_an_engine_is_bounded_and_those_that_answer_are_asked(compose: Compose) -> None:
    for name, service in compose.services.items():
        if service.image.startswith("vllm/"):
            continue
        assert service.mem_limit, name
        assert service.cap_drop == ["ALL"], name
        assert service.security_opt == ["no-new-privileges:true"], name
        answers = not service.ours or service.command[:1] in (["serve"], ["agent"])
        assert (service.healthcheck is not None) == answers, name


def test_the_agents_healthcheck_tells_one_that_answers_from_one_that_does_not(
    compose: Compose, tmp_path: Path
) -> None:
    asked = compose.services["gpu-agent"].healthcheck
    assert asked is not None
    kind, python, option, program = asked.test
    assert (kind, python, option) == ("CMD", "python", "-c")
    program = program.replace("/run/joulegate", str(tmp_path))
    path = str(tmp_path / "agent.sock")
    for answer, healthy in ((b"HTTP/1.1 200 OK\r\n\r\n", True), (b"HTTP/1.1 503 No\r\n\r\n", False)):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            asking = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(1000).startswith(b"GET /healthz HTTP/1.1\r\n")
                connection.sendall(answer)
            assert (asking.wait(30) == 0) is healthy
        Path(path).unlink()


def test_agent_and_watchdog_outlive_each_other(compose: Compose) -> None:
    """Both join the process namespace of a third container; the end of process 1 would be the end of all."""
    for profile in PROFILES:
        services = in_profile(compose, profile)
        pair = [s for s in services.values() if s.command[:1] in (["agent"], ["watchdog"])]
        holders = {s.pid for s in pair}
        assert len(pair) == 2
        assert len(holders) == 1
        holder = services[str(holders.pop()).removeprefix("service:")]
        assert holder.entrypoint == ["sleep", "infinity"]
        assert all(s.restart == "always" for s in pair)
        mounted = [{v.split(":")[1] for v in s.volumes} for s in pair]
        assert mounted[0] == mounted[1]
        assert "/run/joulegate" in mounted[0]


def test_everybody_may_write_where_it_keeps_its_state_and_nobody_else_an_agents(compose: Compose) -> None:
    """A volume begins as the image has the folder. Root has no right to pass over permissions here."""
    stages = (DEPLOY / "Dockerfile").read_text()
    folders = {
        path: (owner, int(mode, 8))
        for owner, mode, path in re.findall(r"install -d -o (\w+) -g \w+ -m (\d+) (\S+)", stages)
    }
    checked = set()
    for service in compose.services.values():
        if service.command[:1] not in (["agent"], ["watchdog"], ["serve"]):
            continue
        text = outside(service, service.command[-1]).read_text()
        kept = re.search(r"(?:state_dir|proofs_file): (\S+)", text)
        path = str(PurePosixPath(kept[1]).parent) if kept else "/var/lib/joulegate"
        owner, mode = folders[path]
        assert owner == ("root" if service.user else "joulegate")
        assert mode & 0o022 == 0, "an agent refuses a folder that others may write to"
        assert path in {volume.split(":")[1] for volume in service.volumes}
        checked.add(path)
    assert checked == {"/var/lib/joulegate", "/var/lib/joulegate-gateway", "/plant"}


def test_the_example_of_the_environment_is_what_compose_reads() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    read = set(re.findall(r"\$\{(\w+)", text))
    example = re.findall(r"^(\w+)=", (DEPLOY / "compose.env.example").read_text(), re.MULTILINE)
    assert set(example) <= read
    assert {"GPU_SHORT", "GPU_MEDIUM", "GPU_LONG", "JOULEGATE_MODE", "JOULEGATE_ALLOW_WRITES"} <= set(example)
    assert all(f"${{{name}:-" in text for name in read), "an unset variable must not stop another profile"


def test_ports_are_published_on_this_machine_only(compose: Compose) -> None:
    published = [port for service in compose.services.values() for port in service.ports]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_image_holds_every_package() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for package in COMMANDS.values():
        assert package.target.partition(".")[0] in allowed
    assert {"configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "control"} <= allowed


def manifests() -> list[Any]:
    files = sorted((DEPLOY / "k8s").glob("*.yaml"))
    return [document for file in files for document in YAML(typ="safe", pure=True).load_all(file)]


def pod_specs() -> list[Any]:
    return [m["spec"]["template"]["spec"] for m in manifests() if "template" in m.get("spec", {})]


def test_kubernetes_pods_mount_what_they_name_and_run_commands_that_exist() -> None:
    settings = {m["metadata"]["name"]: m["data"] for m in manifests() if m["kind"] == "ConfigMap"}
    for spec in pod_specs():
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= set(volumes)
            words, option, path = container["args"]
            assert words in COMMANDS
            assert option == "-c"
            source = volumes[mounts[str(PurePosixPath(path).parent)]]["configMap"]["name"]
            assert PurePosixPath(path).name in settings[source]
            limits = container["securityContext"]
            assert limits["capabilities"]["drop"] == ["ALL"]
            assert limits["readOnlyRootFilesystem"]
            assert limits["allowPrivilegeEscalation"] is False


def test_kubernetes_settings_are_good(tmp_path: Path) -> None:
    """Paths of the image and of secrets are moved to where they can be looked at."""
    checked = 0
    for manifest in manifests():
        for name, text in manifest.get("data", {}).items():
            for secret in re.findall(r"/run/secrets/[\w./-]+", text):
                file = tmp_path / secret.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
            text = text.replace("/run/secrets", f"{tmp_path}/run/secrets")
            text = text.replace("/usr/share/joulegate", str(ROOT / "configs"))
            (tmp_path / name).write_text(text)
            model = model_of(name.removesuffix(".yaml"))
            load_with_places(tmp_path / name, model, {"NODE_NAME": "gpu-node-1"})
            checked += 1
    assert checked == 2


def check_fields(value: Any, kind: str, path: str) -> None:
    """Against the API's own models; `kind`: one of them, or a list or dict of them."""
    if kind.startswith("List["):
        for number, each in enumerate(value):
            check_fields(each, kind[5:-1], f"{path}[{number}]")
    elif kind.startswith("Dict["):
        for key, each in value.items():
            check_fields(each, kind[5:-1].partition(", ")[2], f"{path}.{key}")
    elif hasattr(client, kind):
        model = getattr(client, kind)
        named = {there: here for here, there in model.attribute_map.items()}
        for key, each in value.items():
            assert key in named, f"{path}.{key}: no such field of {kind}"
            check_fields(each, model.openapi_types[named[key]], f"{path}.{key}")
    else:
        expected = {"str": str, "bool": bool, "int": int}.get(kind, object)
        assert isinstance(value, expected), f"{path}: {value!r} is no {kind}"


@pytest.mark.parametrize("manifest", manifests(), ids=lambda m: f"{m['kind']} {m['metadata']['name']}")
def test_kubernetes_manifests_have_fields_that_the_api_has(manifest: Any) -> None:
    check_fields(manifest, f"V1{manifest['kind']}", manifest["kind"])


def test_kubernetes_agent_and_watchdog_share_their_processes() -> None:
    [spec] = [spec for spec in pod_specs() if len(spec["containers"]) > 1]
    assert spec["shareProcessNamespace"] is True
    mounted = [{mount["mountPath"] for mount in c["volumeMounts"]} for c in spec["containers"]]
    assert all({"/run/joulegate", "/var/lib/joulegate"} <= paths for paths in mounted)


def test_gateways_keep_what_they_have_learned_where_they_may_write(compose: Compose) -> None:
    for service in (s for s in compose.services.values() if s.command[:1] == ["serve"]):
        text = outside(service, service.command[-1]).read_text()
        kept = re.findall(r"(?:proofs_file|state_file|models_dir): (\S+)", text)
        assert len(kept) == 3
        assert all(str(PurePosixPath(path).parent) == "/var/lib/joulegate-gateway" for path in kept)
        assert "learned:/var/lib/joulegate-gateway" in service.volumes
    [(spec, settings)] = [
        (spec, m["data"]["gateway.yaml"])
        for spec in pod_specs()
        for m in manifests()
        if len(spec["containers"]) == 1 and "gateway.yaml" in m.get("data", {})
    ]
    assert len(re.findall(r"/var/lib/joulegate-gateway/\w+", settings)) == 3
    assert {"name": "learned", "mountPath": "/var/lib/joulegate-gateway"} in spec["containers"][0][
        "volumeMounts"
    ]


def test_the_gateways_unit_starts_a_command_that_exists_and_gives_it_no_right() -> None:
    lines = (DEPLOY / "systemd/joulegate-gateway.service").read_text().splitlines()
    unit = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    program, word, option, path = unit["ExecStart"].split()
    assert PurePosixPath(program).name == "joulegate"
    assert word in COMMANDS
    assert (option, path) == ("-c", "/etc/joulegate/gateway.yaml")
    assert unit["CapabilityBoundingSet"] == ""
    assert unit["DynamicUser"] == unit["NoNewPrivileges"] == unit["PrivateDevices"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert "@resources" not in unit["SystemCallFilter"], "refits and plans set their own limits"


def declared() -> set[str]:
    names = {f"{name}_total" for name in COUNTERS} | set(GAUGES) | {"joulegate_build_info"}
    return names | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")}


def yaml_of(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def test_prometheus_scrapes_names_that_exist(compose: Compose) -> None:
    known = set(compose.services)
    known |= {a for s in compose.services.values() for n in s.networks.values() for a in n.aliases}
    scraped = [
        name
        for job in yaml_of(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]
        for source in job["dns_sd_configs"]
        for name in source["names"]
    ]
    assert "gateway" in scraped
    assert set(scraped) <= known


def test_rules_use_metrics_that_exist_and_explain_themselves() -> None:
    rules = [r for g in yaml_of(DEPLOY / "prometheus/rules.yml")["groups"] for r in g["rules"]]
    anchors = headings(ROOT / "docs/troubleshooting.md")
    for rule in rules:
        assert set(METRIC.findall(rule["expr"])) <= declared(), rule
        if "alert" in rule:
            assert {"summary", "description", "runbook_url"} <= set(rule["annotations"])
            assert rule["labels"]["severity"] in {"warning", "critical"}
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert page == "docs/troubleshooting.md"
            assert anchor in anchors, anchor
    tested = (DEPLOY / "prometheus/rules_test.yml").read_text()
    assert all(r["record"] in tested for r in rules if "record" in r)


def shown(metric: str) -> set[str]:
    """Labels of a gateway's metric once Prometheus has scraped it: `instance` is then the gateway."""
    name = re.sub(r"_(total|bucket|sum|count)$", "", metric)
    labels = {**COUNTERS, **HISTOGRAMS, **GAUGES}[name if name not in GAUGES else metric].labels
    renamed = {"exported_instance" if label == "instance" else label for label in labels}
    return renamed | {"instance", "job"}


def test_alerts_and_legends_name_labels_that_prometheus_has() -> None:
    rules = [r for g in yaml_of(DEPLOY / "prometheus/rules.yml")["groups"] for r in g["rules"]]
    spoken = [(r["expr"], r["annotations"]["summary"]) for r in rules if "alert" in r]
    dashboard = json.loads((DEPLOY / "grafana/dashboards/joulegate.json").read_text())
    spoken += [(t["expr"], t["legendFormat"]) for p in dashboard["panels"] for t in p["targets"]]
    checked = 0
    for expression, text in spoken:
        metrics = METRIC.findall(expression)
        for label in re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text):
            assert all(label in shown(metric) for metric in metrics), (expression, label)
            checked += len(metrics)
    assert checked > 20


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((DEPLOY / "grafana/dashboards/joulegate.json").read_text())
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            used = set(METRIC.findall(target["expr"]))
            assert used, panel["title"]
            assert used <= declared(), panel["title"]
            assert "rate(" not in target["expr"] or "[$__rate_interval]" in target["expr"]


def test_grafana_finds_its_data_source_and_dashboards(compose: Compose) -> None:
    grafana = compose.services["grafana"]
    [source] = yaml_of(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = yaml_of(DEPLOY / "grafana/provisioning/dashboards/joulegate.yml")["providers"]
    assert outside(grafana, provider["options"]["path"]) == DEPLOY / "grafana/dashboards"
    home = grafana.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert outside(grafana, str(home)).is_file()
