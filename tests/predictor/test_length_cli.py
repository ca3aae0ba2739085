"""`train length` and `evaluate length` from files to figures, and the artifact between them."""

import gzip
import io
import json
import random
import zipfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree
from zlib import crc32

import numpy as np
import pytest

from joulegate.cli import COMMANDS, run
from joulegate.domain import Cuts
from joulegate.errors import UserError
from predictor.artifact import Artifact, load, save
from predictor.length_data import read_prompts, read_traces
from predictor.length_evaluate import Judged, StreamName, report
from predictor.length_state import restore, state_arrays
from predictor.length_store import SCHEMA, factory, save_learned
from predictor.length_text import TextPredictor

KINDS = (("Translate to French", 15), ("Write an essay about", 700), ("Explain briefly", 150))
ROWS = 500
KEYS = (
    *("n", "accuracy", "macro_f1", "accuracy_after_100", "macro_f1_after_100", "first50_minus_majority"),
    *("p_actual_over_q90", "pinball_q90", "kendall_tau_after_100", "under_prediction_rate"),
    *("predict_us_p50", "predict_us_p99", "update_us_p99"),
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("data") / "prompts.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for number in range(ROWS):
            kind, tokens = rng.choice(KINDS)
            row = {
                "prompt": f"{kind} {rng.choice(('cats', 'ships', 'rain'))} {number}",
                "output_tokens": max(1, int(tokens * rng.lognormvariate(0, 0.2))),
                "model": rng.choice(("a", "b")),
                "source": "made",
                "group": kind,
                "prompt_id": f"p{number}",
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def model(prompts: Path) -> Path:
    out = prompts.parent / "model.npz"
    assert run(["train", "length", "--data", str(prompts), "--out", str(out)], COMMANDS) == 0
    return out


def figures(arguments: Sequence[str], capsysbinary: pytest.CaptureFixture[bytes]) -> dict[str, float]:
    capsysbinary.readouterr()
    assert run(["evaluate", "length", "--json", *arguments], COMMANDS) == 0
    found: dict[str, float] = json.loads(capsysbinary.readouterr().out)
    return found


def test_training_then_judging_unseen_prompts(
    prompts: Path, model: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    found = figures(["--data", str(prompts), "--model", str(model), "--split", "test"], capsysbinary)
    assert set(KEYS) <= set(found)
    assert found["n"] == sum(crc32(f"p{number}".encode()) % 5 == 0 for number in range(ROWS))
    assert found["accuracy"] > 0.9


def test_a_tenant_key_is_learned_from_scratch(
    prompts: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    plain = figures(["--data", str(prompts), "--prior", "none"], capsysbinary)
    keyed = figures(["--data", str(prompts), "--prior", "none", "--tenant-key", "group"], capsysbinary)
    assert keyed["accuracy_after_100"] > plain["accuracy_after_100"] + 0.1


def test_a_trace_is_judged_and_the_files_name_can_be_the_tenant(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    for name, tokens in (("long", 900), ("short", 5)):
        lines = [f"{at},{100 + at % 7},{tokens}" for at in range(200)]
        (tmp_path / f"{name}.csv").write_text("timestamp_s,input_tokens,output_tokens\n" + "\n".join(lines))
    traces = [
        "--trace",
        str(tmp_path / "long.csv"),
        "--trace",
        str(tmp_path / "short.csv"),
        "--prior",
        "none",
    ]
    assert figures([*traces, "--tenant-key", "trace"], capsysbinary)["accuracy"] > 0.95
    assert figures(traces, capsysbinary)["n"] == 400


def test_training_never_sees_the_held_out_fifth(prompts: Path, model: Path) -> None:
    rows = [row for row in read_prompts([prompts]) if not row.held_out]
    assert load(model, SCHEMA).header["rows"] == len(rows)


def test_what_was_learned_is_restored_exactly(prompts: Path, model: Path) -> None:
    make = factory(Cuts(), model, use_prior=True)
    first, second = make(), make()
    assert isinstance(first, TextPredictor)
    rows = read_prompts([prompts])[:80]
    for row in rows:
        first.observe(row.sample.query, first.predict(row.sample.query), row.sample.output_tokens)
    restore(second, *state_arrays(first))
    for row in rows[:20]:
        ours, theirs = first.predict(row.sample.query), second.predict(row.sample.query)
        assert ours.classes == pytest.approx(theirs.classes, abs=1e-4)
        assert ours.q90 == pytest.approx(theirs.q90, rel=1e-3)


def test_what_a_gateway_learned_can_be_its_next_start(prompts: Path, tmp_path: Path) -> None:
    predictor = factory(Cuts(), None, use_prior=True)()
    assert isinstance(predictor, TextPredictor)
    rows = read_prompts([prompts])[:60]
    for row in rows:
        predictor.observe(row.sample.query, predictor.predict(row.sample.query), row.sample.output_tokens)
    save_learned(tmp_path / "learned.npz", predictor)
    again = factory(Cuts(), tmp_path / "learned.npz", use_prior=True)()
    query = rows[0].sample.query
    assert again.predict(query).classes == pytest.approx(predictor.predict(query).classes, abs=1e-3)


NOWHERE = ("--data", "/nowhere.csv", "--out", "/nowhere/model.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["evaluate", "length"], "either --data or --trace", id="nothing to judge"),
        pytest.param(["evaluate", "length", "--data", "/nowhere.jsonl"], "/nowhere.jsonl", id="no file"),
        pytest.param(["train", "length"], "nothing to learn from", id="nothing to learn"),
        pytest.param(["train", "latency", "--clocks", "0:9:1", *NOWHERE], "expected LOW:HIGH", id="no clock"),
        pytest.param(
            ["train", "latency", "--clocks", "1:9999999999:1", *NOWHERE], "expected LOW:", id="many"
        ),
        pytest.param(["evaluate", "load", "--synthetic", "-3"], "Invalid value", id="less than no weeks"),
    ],
)
def test_a_wrong_command_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, COMMANDS) == 2
    assert message in capsys.readouterr().err


def test_a_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 3, "model": "m"}\n{"prompt": "b"}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        read_prompts([path])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"prompt": "a", "output_tokens": NaN, "model": "m"}', "not a row"),
        ('{"prompt": "a", "output_tokens": "NaN", "model": "m"}', "output_tokens: 'NaN' is not a number"),
        ('{"prompt": "a", "output_tokens": -3, "model": "m"}', "output_tokens: -3 is no number of tokens"),
        ('{"prompt": "a", "output_tokens": true, "model": "m"}', "output_tokens: True is not a number"),
        ('{"prompt": "a", "output_tokens": 9e99, "model": "m"}', "output_tokens: 9e\\+99 is no number"),
        ('{"prompt": "a", "output_tokens": 3, "input_tokens": -1, "model": "m"}', "input_tokens: -1"),
        ('{"prompt": "a", "model": "m"}', "output_tokens: is missing"),
        ('{"prompt": "a", "output_tokens": 3}', "model: is missing"),
        ('{"prompt": ["a"], "output_tokens": 3, "model": "m"}', "prompt: .* is not text"),
        (
            '{"text": "a", "output_tokens": 3, "model": "m"}',
            "no prompt, messages or input_tokens, only .*text",
        ),
        ('{"messages": "a", "output_tokens": 3, "model": "m"}', "messages: 'a' is no list of messages"),
        ("[1, 2]", "not an object"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(tmp_path: Path, row: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "a", "output_tokens": 0, "model": "m"}}\n\n{row}\n')
    with pytest.raises(UserError, match=rf"rows\.jsonl:3: .*{said}"):
        read_prompts([path])


def test_messages_are_read_as_the_gateway_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    parts = [{"type": "text", "text": "what is "}, {"type": "image_url"}, {"type": "text", "text": "this"}]
    talk = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts},
    ]
    line = {"messages": talk, "output_tokens": 3, "model": "m"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line).encode() + b"\n")
    [row] = read_prompts([path])
    assert row.sample.query.text_head == "what is this"
    assert row.sample.query.input_tokens == (8 + 5 + 12) // 4


def test_a_trace_of_others_is_judged_with_turns_by_their_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = ("1700000005,20,7,0", "1700000000,10,5,", "1700000003,10,0,")
    path.write_text("\ufefftimestamp,prompt_tokens,completion_tokens,parent_row\n" + "\n".join(rows))
    [[first, second]] = read_traces([path], None).values()
    assert (first.at, first.query.input_tokens, first.query.turn, first.query.parent) == (0.0, 10, 2, 0)
    assert (second.at, second.output_tokens, second.query.turn, second.query.parent) == (5.0, 7, 1, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("timestamp_s,input_tokens\n1,2\n", "trace.csv:1: column 'output_tokens' is missing"),
        ("timestamp_s,input_tokens,output_tokens\n0,5,5\nnan,5,5\n", "trace.csv:3: timestamp_s is nan"),
        ("timestamp_s,input_tokens,output_tokens\n0,5\n", "trace.csv:2: 2 columns, the header has 3"),
        ("timestamp_s,input_tokens,output_tokens\n0,5,-5\n", "trace.csv:2: 5 input and -5 output"),
        ("timestamp_s,input_tokens,output_tokens\n", "holds no requests"),
        ("\x00\ufffd", "trace.csv"),
    ],
)
def test_what_is_wrong_with_a_trace_is_said(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_traces([path], None)


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_file_cut_short_or_not_compressed_is_damaged_not_empty(
    prompts: Path, tmp_path: Path, kept: float
) -> None:
    whole, path = prompts.read_bytes(), tmp_path / "rows.jsonl.gz"
    path.write_bytes(whole[: int(kept * len(whole))] or b"plain text")
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz:\d+: cannot be read further"):
        read_prompts([path])


def test_prompts_in_any_script_and_of_any_length_are_judged(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    texts = ("напиши рассказ", "写一个故事", "اكتب قصة", "😀", "", "\n", "x " * 200_000)
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": texts[n % 7], "output_tokens": (0, 300, 900)[n % 3], "model": "m"} for n in range(42)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert figures(["--data", str(path)], capsysbinary)["n"] == 42


def test_answers_of_one_length_can_be_learned_from(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say yes {n}", "output_tokens": 5, "model": "m"} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "model.npz"
    assert run(["train", "length", "--data", str(path), "--out", str(out)], COMMANDS) == 0
    assert load(out, SCHEMA).header["score_correlation"] == 0.0


def test_too_few_prompts_to_learn_from_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 3, "model": "m"}\n' * 500)
    assert run(["train", "length", "--data", str(path), "--out", str(tmp_path / "o.npz")], COMMANDS) == 2
    assert "different prompts to learn from" in capsys.readouterr().err


def test_an_unknown_tenant_column_lists_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "output_tokens": 3, "model": "m"}\n')
    with pytest.raises(UserError) as caught:
        read_prompts([path], "team")
    assert "output_tokens" in caught.value.help


def of_other_members() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", "no array")
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 torn", of_other_members()])
def test_a_torn_artifact_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    with pytest.raises(UserError):
        load(path, SCHEMA)


def test_an_artifact_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    save(path, "something/1", Artifact({}, {"a": np.zeros(3)}))
    with pytest.raises(UserError, match="something/1"):
        load(path, SCHEMA)


def test_saving_replaces_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    for value in (1.0, 2.0):
        save(path, "s/1", Artifact({"v": value}, {"a": np.full(3, value)}))
    assert load(path, "s/1").arrays["a"].tolist() == [2.0, 2.0, 2.0]
    assert [found.name for found in tmp_path.iterdir()] == ["model.npz"]


def judged(place: int, actual: int, chosen: int, majority: int, q90: float, tokens: int) -> Judged:
    return Judged(place, actual, chosen, majority, (0.5, 0.3, 0.2), 10.0, q90, tokens, 1e-5, 2e-5)


def test_the_figures_are_what_their_names_say() -> None:
    stream = [judged(place, 0, 0, 1, 20.0, 10) for place in range(60)]
    stream += [judged(place, 2, 1, 2, 300.0, 400) for place in range(60, 120)]
    found = report({StreamName("s", "m"): stream})
    assert found.accuracy == 0.5
    assert found.macro_f1 == pytest.approx(1 / 3)
    assert found.accuracy_after_100 == 0.0
    assert found.first50_minus_majority == {"s": 100.0}
    assert found.p_actual_over_q90 == {"s": 1.0}
    assert found.pinball_q90 == pytest.approx(90.0)
    assert found.under_prediction_rate == 0.5
    assert found.predict_us_p50 == pytest.approx(10.0)
    assert found.update_us_p99 == pytest.approx(20.0)


def test_calibration_counts_every_class_of_every_prediction() -> None:
    found = report({StreamName("s", "m"): [judged(place, place % 2, 0, 0, 20.0, 10) for place in range(40)]})
    assert [(round(b.said, 3), b.came, b.n) for b in found.calibration] == [
        (0.2, 0.0, 40),
        (0.3, 0.5, 40),
        (0.5, 0.5, 40),
    ]


def test_the_calibration_is_plotted(prompts: Path, tmp_path: Path) -> None:
    plot = tmp_path / "calibration.svg"
    assert run(["evaluate", "length", "--data", str(prompts), "--plot", str(plot)], COMMANDS) == 0
    root = ElementTree.fromstring(plot.read_text())
    assert root.tag.endswith("svg")
    assert len(root.findall(".//{*}circle")) >= 2


def test_nothing_to_judge_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        report({})
