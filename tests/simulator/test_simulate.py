"""`joulegate simulate`: from a scenario file to a table, JSON and a report that needs nothing else."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from joulegate.cli import COMMANDS, run
from joulegate.domain import Cuts
from joulegate.errors import UserError
from joulegate.settings.load import load
from joulegate.settings.scenario import POLICIES, Scenario
from simulator.cluster import Setup
from simulator.costs import EngineCosts
from simulator.scenario import MAX_SEEDS, MIN_SEEDS, objectives_of, prepare
from simulator.simulate import Request, changed, read_profile, recipe_of, simulate_all
from simulator.spool import read_load
from simulator.sustain import sustainable
from simulator.workload import by_input

CONFIGS = Path(__file__).parents[2] / "configs"
KEYS = set(
    [
        "name",
        "energy_kwh_released",
        "energy_kwh_owned",
        "saving_pct_released",
        "saving_pct_owned",
        "saving_ci_pct",
        "saving_over_static_points",
        "attainment_pct",
        "attainment_tokens_pct",
        "attainment_5x_pct",
        "slowdown_p50_e2e",
        "ttft_p99_s",
        "tpot_p99_s",
        "itl_p99_s",
        "e2e_p99_s",
        "gpus_avg",
        "clock_changes_per_min",
        "j_per_output_token",
        "j_per_total_token",
        "counts",
        "why_not",
    ]
)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Two minutes of light traffic on one H100."""
    draw = np.random.default_rng(1)
    at = np.cumsum(draw.exponential(0.3, 400))
    rows = zip(at, draw.integers(20, 2500, 400), draw.integers(2, 200, 400), strict=True)
    text = "timestamp_s,input_tokens,output_tokens\n" + "".join(f"{t:.4f},{i},{o}\n" for t, i, o in rows)
    (tmp_path / "trace.csv").write_text(text)
    profile = CONFIGS / "profiles" / "h100_llama-3.1-8b_tp1.json"
    path = tmp_path / "scenario.yaml"
    path.write_text(
        f"version: 1\nkind: scenario\nname: tiny\ntrace: trace.csv\nprofile: {profile}\n"
        "load: {scale: 1.0}\npolicies: [max-clock, joulegate, joulegate-slowdown]\nseeds: 2\n"
    )
    return path


def test_a_scenario_gives_every_figure_of_every_policy(scenario: Path) -> None:
    [(_, made)] = simulate_all(Request(scenario, swapped=False))
    assert made["baseline"] == "max-clock"
    assert [policy["name"] for policy in made["policies"]] == ["max-clock", "joulegate", "joulegate-slowdown"]
    assert all(policy.keys() >= KEYS for policy in made["policies"])
    baseline, joulegate, slowed = made["policies"]
    assert (baseline["saving_pct_released"], baseline["counts"]) == (0.0, True)
    assert joulegate["saving_pct_released"] > 10.0
    assert slowed["slowdown_p50_e2e"] <= max(1.2, joulegate["slowdown_p50_e2e"])


class Report(HTMLParser):
    """What a reader of an HTML report sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures = dict[str, list[tuple[float, float]]]()  # points by title
        self.elements = set[str]()
        self.cells = list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.add(tag)
        if tag == "svg":
            self._points = self.pictures[str(given["aria-label"])] = []
            *_, self._width, self._height = map(float, str(given["viewbox"]).split())
        numbers = (
            [f"{given['cx']},{given['cy']}"] if tag == "circle" else str(given.get("points", "")).split()
        )
        for x, _, y in (pair.partition(",") for pair in numbers):
            assert 0.0 <= float(x) <= self._width, "inside the picture"
            assert 0.0 <= float(y) <= self._height, "inside the picture"
            self._points.append((float(x), float(y)))

    def handle_data(self, data: str) -> None:
        self.cells.append(data)


def test_the_command_prints_json_and_writes_a_report_without_links_or_scripts(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["simulate", str(scenario), "--policy", "joulegate", "--policy", "multi-pool", "--seeds", "1"]
    assert run([*words, "--json", "--out", str(out)], COMMANDS) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["policies"][1]["swapped"].keys() >= {"saving_pct_released", "counts"}
    [path] = out.glob("*.html")
    text = path.read_text()
    assert "http" not in text
    report = Report(text)
    assert not report.elements & {"script", "link", "img", "iframe"}
    assert [*report.pictures] == [
        "Power, first seed",
        "Instances on, first seed",
        "Time at or below a clock",
        "Attainment by requests (dot) and output tokens (ring)",
        "TTFT",
        "TPOT",
        "End to end",
        "Saving against slowdown",
    ]
    assert all(len(points) >= 2 for points in report.pictures.values())
    for policy in made["policies"]:
        assert policy["name"] in report.cells
        figures = (
            policy["saving_pct_released"],
            policy["attainment_tokens_pct"],
            policy["worst_seed_saving_pct"],
        )
        assert {f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.1f}"} <= set(report.cells)
    far = made["policies"][2]
    assert far["saving_pct_released"] < -100.0, "nine pools for what one instance serves"
    assert any("multi-pool" in cell and cell.endswith("(below)") for cell in report.cells)
    [saved] = out.glob("*.json")
    assert json.loads(saved.read_text()) == made


def test_too_few_seeds_are_said_and_as_many_as_the_rule_asks_for_are_used_unless_that_is_too_many(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(scenario), "--policy", "max-clock", "--seeds", "1"], COMMANDS) == 0
    assert "1 seed (the rule asks for " in capsys.readouterr().out
    scenario.write_text(scenario.read_text().replace("seeds: 2\n", ""))
    for scale, seeds in ((1.0, MAX_SEEDS), (30.0, None), (200.0, MIN_SEEDS)):
        settings = changed(load(scenario, Scenario), Request(scenario, scale=scale))
        recipe, profile = recipe_of(settings, tmp_path), read_profile(settings.profile)
        bench = prepare(settings, recipe, Setup((EngineCosts(profile),), objectives_of(settings)), (), None)
        fewest = min(by_input(bench.cases[0].score, Cuts()))
        assert len(bench.cases) == (seeds or bench.asked)
        assert bench.asked == MIN_SEEDS or (bench.asked - 1) * fewest < 2000 <= bench.asked * fewest


@pytest.mark.parametrize(("scale", "said"), [("1", True), ("1.5", False)])
def test_seeds_that_bring_the_same_arrivals_are_told(
    scenario: Path, scale: str, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["simulate", str(scenario), "--policy", "max-clock", "--scale", scale], COMMANDS) == 0
    assert ("every seed has the same arrivals" in capsys.readouterr().err) is said


def test_every_policy_runs_on_a_fleet_and_gives_every_figure(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    at = np.cumsum(draw.exponential(0.15, 600))
    rows = zip(at, draw.integers(20, 2500, 600), draw.integers(2, 300, 600), strict=True)
    text = "output_tokens,tenant,timestamp_s,input_tokens\n" + "".join(
        f"{o},a,{t:.4f},{i}\n" for t, i, o in rows
    )
    (tmp_path / "trace.csv").write_text(text)
    tp = {size: CONFIGS / "profiles" / f"h100_llama-3.1-70b_tp{size}.json" for size in (2, 4, 8)}
    path = tmp_path / "fleet.yaml"
    path.write_text(
        f"version: 1\nkind: scenario\nname: fleet\ntrace: trace.csv\nprofile: {tp[8]}\ninstances: 2\n"
        f"builds: [{tp[2]}, {tp[4]}, {tp[8]}]\nthroughput: {{e2e_ms: 20000}}\nload: {{scale: 1.0}}\n"
        f"also: [{{trace: trace.csv, scale: 0.5}}]\npolicies: [{', '.join(POLICIES)}]\nseeds: 1\n"
    )
    [(result, made)] = simulate_all(Request(path, swapped=False))
    rows_by_name = {policy["name"]: policy for policy in made["policies"]}
    assert set(rows_by_name) == set(POLICIES)
    assert all(policy.keys() >= KEYS for policy in made["policies"])
    assert made["requests"] == pytest.approx(900 / 2, rel=0.2)
    assert {policy.score.requests for policy in result.policies.values()} == {made["requests"]}
    assert rows_by_name["multi-pool"]["gpus_avg"] == pytest.approx(72.0, abs=8.0)  # nine pools and more
    assert rows_by_name["scale-shard"]["gpus_avg"] == pytest.approx(16.0)
    assert rows_by_name["single-pool"]["clock_changes_per_min"] == 0.0
    assert rows_by_name["scale-inst"]["clock_changes_per_min"] == 0.0
    assert rows_by_name["joulegate"]["saving_pct_released"] > 25.0


@pytest.mark.parametrize("rows", [[(0.0, 5, 5)], [(0.0, 5, 5)] * 50])
def test_a_trace_that_cannot_be_cut_in_halves_is_refused(
    scenario: Path, rows: list[tuple[float, int, int]]
) -> None:
    text = "timestamp_s,input_tokens,output_tokens\n" + "".join(f"{t},{i},{o}\n" for t, i, o in rows)
    scenario.with_name("trace.csv").write_text(text)
    with pytest.raises(UserError):
        simulate_all(Request(scenario, policies=("max-clock",), swapped=False))


@pytest.mark.parametrize(
    ("key", "value"),
    [("clocks_mhz", []), ("latency", {}), ("latency", None), ("engine", {"max_num_seqs": -1})],
)
def test_a_profile_that_is_wrong_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    document = json.loads((CONFIGS / "profiles" / "h100_llama-3.1-8b_tp1.json").read_text())
    document[key] = document[key] | value if key == "engine" and isinstance(value, dict) else value
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"wrong\.json"):
        read_profile(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"wrong\.json"):
        read_profile(path)


@pytest.mark.parametrize("scale", [1e9, float("inf")])
def test_more_requests_than_a_machine_holds_are_refused(scenario: Path, scale: float) -> None:
    with pytest.raises(UserError, match="more than 50,000,000 requests"):
        simulate_all(Request(scenario, scale=scale))


def test_an_unknown_policy_names_the_nearest(scenario: Path) -> None:
    settings = load(scenario, Scenario)
    with pytest.raises(UserError) as raised:
        changed(settings, Request(scenario, policies=("joulgate",)))
    assert "joulegate" in raised.value.help


@pytest.mark.parametrize("path", sorted((CONFIGS / "scenarios").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_scenario_loads_and_its_trace_is_there(path: Path) -> None:
    settings = load(path, Scenario)
    assert len(read_load(settings.trace)) > 1000


def hand_made(folder: Path, tp: int, **changes: object) -> Path:
    """A profile that nobody ships: slower than the H100, at half its power, of one name at every size."""
    document = json.loads((CONFIGS / "profiles" / f"h100_llama-3.1-70b_tp{tp}.json").read_text())
    document |= {"gpu": "Other", "name": "other"}
    document["latency"] = {k: v if k == "p" else 1.5 * v for k, v in document["latency"].items()}
    document["power"] = {k: 0.5 * v if k.endswith("_w") else v for k, v in document["power"].items()}
    document["engine"] |= changes
    path = folder / f"other_tp{tp}.json"
    path.write_text(json.dumps(document))
    return path


def of_h100s(scenario: Path) -> Path:
    """The same scenario on two H100 instances of TP8, with builds."""
    tp = {size: CONFIGS / "profiles" / f"h100_llama-3.1-70b_tp{size}.json" for size in (2, 8)}
    path = scenario.with_name("fleet.yaml")
    path.write_text(
        f"version: 1\nkind: scenario\nname: fleet\ntrace: trace.csv\nprofile: {tp[8]}\ninstances: 2\n"
        f"builds: [{tp[2]}, {tp[8]}]\nload: {{scale: 1.0}}\npolicies: [joulegate]\nseeds: 1\n"
    )
    return path


def test_profiles_given_are_the_whole_fleet(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profiles = tuple(hand_made(tmp_path, size) for size in (2, 4, 8))
    [(result, made)] = simulate_all(Request(of_h100s(scenario), profiles=profiles, swapped=False))
    terms = result.bench.terms
    assert made["profile"] == "other_tp8"
    assert {costs.profile.gpu for costs in (*terms.setup.costs, *terms.builds)} == {"Other"}
    assert [costs.profile.name for costs in terms.builds] == ["other_tp2", "other_tp4", "other_tp8"]
    assert terms.setup.owned_gpus == 8 * len(terms.setup.costs)
    said = capsys.readouterr().err
    assert "baseline other_tp8 (TP8); joulegate may build other_tp2 (TP2), other_tp4 (TP4)" in said
    assert "the fewest that keep every P99" in said


def test_a_fleet_without_the_size_of_the_baseline_begins_with_the_first(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [(result, made)] = simulate_all(
        Request(of_h100s(scenario), profiles=(hand_made(tmp_path, 4),), swapped=False)
    )
    assert made["profile"] == "other_tp4"
    assert result.bench.terms.setup.costs[0].profile.tp == 4
    assert "baseline other_tp4 (TP4)" in capsys.readouterr().err


def test_two_profiles_of_one_size_are_no_fleet(scenario: Path, tmp_path: Path) -> None:
    one = hand_made(tmp_path, 8)
    two = one.with_name("two.json")
    two.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match="other_tp8 and two are both of Other with tensor parallelism 8"):
        simulate_all(Request(of_h100s(scenario), profiles=(one, two)))


def test_requests_that_no_cache_holds_are_left_out_and_it_is_said(
    scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = scenario.with_name("trace.csv").read_text()
    scenario.with_name("trace.csv").write_text(text + "50,20000,2000\n")
    path = hand_made(tmp_path, 2)
    [(_, made)] = simulate_all(Request(scenario, ("max-clock",), (path,), swapped=False))
    assert "1 of 401 requests are longer (up to 22000 tokens) than the KV cache of" in capsys.readouterr().err
    assert made["policies"][0]["attainment_pct"] > 0.0
    small = hand_made(tmp_path, 2, kv_capacity_tokens=10)
    with pytest.raises(UserError, match="401 of 401"):
        simulate_all(Request(scenario, ("max-clock",), (small,)))


def test_an_engine_too_slow_for_a_tenth_of_a_request_a_second_is_given_less(scenario: Path) -> None:
    settings = load(scenario, Scenario)
    profile = read_profile(settings.profile)
    trace = read_load(settings.trace)
    slow = replace(
        profile, latency=replace(profile.latency, m0_s=0.08), engine=replace(profile.engine, max_num_seqs=1)
    )
    aims = objectives_of(settings)
    found = sustainable(trace, Setup((EngineCosts(slow),), aims), 80.0)
    assert found.rate < 0.1
    stopped = replace(slow, latency=replace(slow.latency, m0_s=3.0))
    with pytest.raises(UserError, match="does not keep the objectives even at"):
        sustainable(trace, Setup((EngineCosts(stopped),), aims), 80.0)
