"""The governor: never slower than the objectives allow, never lower on what it does not know."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.governor import GovernorRules, Memory, Outlook, Reason, choose
from control.state import Flight, Gauges, Instance, Limits, LoadBook, PeerPrompts
from joulegate.domain import Batch, Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds
from predictor.physics import PhysicsModel

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
MODEL = PhysicsModel(parse_profile(json.loads((PROFILES / "h100_llama-3.1-8b_tp1.json").read_text())))
MAX = MODEL.clocks[-1]
LOW = MODEL.clocks[0]
PLAIN = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
SLOWED = Objectives(PLAIN.ttft, PLAIN.tpot, None, 1.2)
NOW = Seconds(1000.0)
RULES = GovernorRules()


def flight(n: int, tokens: int, out: float = 0.0, waited: float = 0.0, ttft: float = 0.4) -> Flight:
    made = Flight(
        id=str(n),
        type=RequestType(Size.M, Size.M),
        input_tokens=tokens,
        uncached_tokens=tokens,
        output_q50=150.0,
        output_q90=400.0,
        arrived=Seconds(NOW - waited),
        ttft=Seconds(ttft),
        tpot=Seconds(0.1),
    )
    made.tokens_out = 0.0
    return made


def instance(decoding: Sequence[int] = (), prompts: Sequence[int] = (), waited: float = 0.0) -> Instance:
    """Sequences with so many tokens of context, prompts of so many tokens that wait."""
    book = LoadBook()
    for n, tokens in enumerate(decoding):
        one = flight(n, tokens)
        book.send(one, Seconds(NOW - 5.0))
        book.progress(one, 1, Seconds(NOW - 4.0))
    for n, tokens in enumerate(prompts):
        book.send(flight(1000 + n, tokens, waited=waited), NOW)
    return Instance("i", "p", book, Limits(256, 2048, 440_000), MODEL, slots=256, clock=MAX, telemetry_at=NOW)


def clock(made: Instance, objectives: Objectives = PLAIN, outlook: Outlook | None = None) -> MegaHertz:
    """What the laws ask for with nothing remembered."""
    outlook = outlook or Outlook(floor=LOW)
    decision, _ = choose(made, outlook, objectives, RULES, Memory(), NOW)
    assert decision.clock is not None
    return decision.clock


contexts = st.lists(st.integers(1, 4000), max_size=120)
prompts = st.lists(st.integers(1, 6000), max_size=6)


@settings(deadline=None)
@given(contexts, prompts, st.floats(0.0, 0.3))
def test_every_decision_is_a_supported_clock_and_carries_its_reason(
    decoding: list[int], waiting: list[int], waited: float
) -> None:
    decision, _ = choose(instance(decoding, waiting, waited), Outlook(floor=LOW), PLAIN, RULES, Memory(), NOW)
    assert decision.clock in MODEL.clocks
    assert isinstance(decision.reason, Reason)
    assert decision.sentence


def test_prompts_of_other_gateways_count_by_their_tightest_deadline() -> None:
    alone, shared = instance([500] * 8, [400]), instance([500] * 8, [400])
    shared.peer_prompts = PeerPrompts(4000, Seconds(NOW + 0.3))
    hurried = instance([500] * 8, [400])
    hurried.peer_prompts = PeerPrompts(4000, Seconds(NOW + 0.15))
    assert clock(alone) < clock(shared) < clock(hurried)


def test_clocks_that_take_long_to_change_leave_less_time_for_prompts() -> None:
    assumed, slow = instance([500] * 8, [3000]), instance([500] * 8, [3000])
    slow.switch = Seconds(0.25)
    assert clock(assumed) < clock(slow)


@settings(deadline=None)
@given(contexts, prompts, st.integers(1, 3000), st.booleans())
def test_more_prompts_never_give_a_lower_clock(
    decoding: list[int], waiting: list[int], more: int, slowed: bool
) -> None:
    objectives = SLOWED if slowed else PLAIN
    before = clock(instance(decoding, waiting), objectives)
    assert clock(instance(decoding, [*waiting, more]), objectives) >= before


@settings(deadline=None)
@given(contexts, prompts, st.integers(1, 3000))
def test_more_sequences_never_give_a_lower_clock(decoding: list[int], waiting: list[int], more: int) -> None:
    assert clock(instance([*decoding, more], waiting)) >= clock(instance(decoding, waiting))


@settings(deadline=None)
@given(contexts, prompts, st.floats(0.0, 0.2), st.floats(0.0, 0.2))
def test_the_longer_prompts_waited_the_higher_the_clock(
    decoding: list[int], waiting: list[int], waited: float, longer: float
) -> None:
    early = clock(instance(decoding, waiting, waited))
    assert clock(instance(decoding, waiting, waited + longer)) >= early


@settings(deadline=None)
@given(contexts, prompts)
def test_the_floor_of_the_load_is_respected(decoding: list[int], waiting: list[int]) -> None:
    floor = MODEL.clocks[40]
    assert clock(instance(decoding, waiting), outlook=Outlook(floor=floor)) >= floor


@settings(deadline=None)
@given(contexts.filter(bool), st.floats(0.0, 0.8), st.floats(1.0, 4.0))
def test_a_step_and_prompts_are_within_tpot_or_the_clock_is_at_its_maximum(
    decoding: list[int], share: float, slack: float
) -> None:
    made = instance(decoding)
    at_max, _ = choose(made, Outlook(floor=MAX), PLAIN, RULES, Memory(), NOW)
    assert at_max.tpot is not None
    aims = Objectives(PLAIN.ttft, Seconds(slack * at_max.tpot), None, None)
    decision, _ = choose(made, Outlook(floor=LOW, prompt_share=share), aims, RULES, Memory(), NOW)
    assert decision.tpot is not None
    assert decision.tpot / (1.0 - share) <= aims.tpot * 1.0001 or decision.clock == MAX


@settings(deadline=None)
@given(contexts.filter(bool))
def test_a_step_is_within_the_slowdown_allowed(decoding: list[int]) -> None:
    made = instance(decoding)
    decision, _ = choose(made, Outlook(floor=LOW), SLOWED, RULES, Memory(), NOW)
    at_max, _ = choose(made, Outlook(floor=MAX), SLOWED, RULES, Memory(), NOW)
    assert decision.tpot is not None
    assert at_max.tpot is not None
    assert decision.tpot <= 1.2 * at_max.tpot + 1e-9


@settings(deadline=None)
@given(st.sampled_from(MODEL.clocks), prompts.filter(bool))
def test_raising_is_never_delayed(held: MegaHertz, waiting: list[int]) -> None:
    """Whatever was decided a moment ago, what the laws ask for now is there at once."""
    made = instance((), waiting, waited=0.2)
    wanted = clock(made)
    just_lowered = Memory(clock=held, lowered_at=NOW, peaks=((NOW, held),))
    decision, _ = choose(made, Outlook(floor=LOW), PLAIN, RULES, just_lowered, NOW)
    assert decision.clock is not None
    assert decision.clock >= wanted


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 0.6), st.sampled_from(MODEL.clocks)), min_size=2, max_size=40))
def test_lowering_waits_for_the_dwell_and_comes_at_most_once_a_second(
    steps: list[tuple[float, MegaHertz]],
) -> None:
    memory, at = Memory(), float(NOW)
    wanted: list[tuple[float, MegaHertz]] = []
    lowered: list[float] = []
    held: MegaHertz | None = None
    for wait, floor in steps:
        at += wait
        made = instance()
        made.telemetry_at = Seconds(at)
        decision, memory = choose(made, Outlook(floor=floor), PLAIN, RULES, memory, Seconds(at))
        assert decision.clock is not None
        wanted.append((at, floor))
        recent = max(w for t, w in wanted if at - t <= RULES.dwell)
        assert decision.clock >= recent
        if held is not None and decision.clock < held:
            lowered.append(at)
        held = decision.clock
    assert all(b - a >= RULES.lowering_interval for a, b in pairwise(lowered))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"model": None}, Reason.NO_MODEL, id="no model"),
        pytest.param({"telemetry_at": None}, Reason.STALE, id="agent never heard"),
        pytest.param({"telemetry_at": Seconds(NOW - 10.0)}, Reason.STALE, id="agent silent"),
    ],
)
def test_without_information_clocks_stay_at_default(change: dict[str, object], reason: Reason) -> None:
    made = instance([500] * 5)
    for name, value in change.items():
        setattr(made, name, value)
    low = Memory(clock=LOW, lowered_at=NOW, peaks=((NOW, LOW),))
    decision, memory = choose(made, Outlook(floor=LOW), PLAIN, RULES, low, NOW)
    assert (decision.clock, decision.reason) == (None, reason)
    assert memory.clock is None


def test_an_unknown_load_is_served_at_maximum_clock() -> None:
    assert clock(instance([500] * 5), outlook=Outlook(floor=None)) == MAX


def test_a_queue_that_is_not_ours_is_served_at_maximum_clock() -> None:
    made = instance([500] * 5)
    made.gauges = Gauges(running=5, waiting=3, at=NOW)
    decision, _ = choose(made, Outlook(floor=LOW), PLAIN, RULES, Memory(), NOW)
    assert (decision.clock, decision.reason) == (MAX, Reason.SHARED)


def test_an_engine_that_only_others_use_is_not_taken_for_idle() -> None:
    made = instance()
    assert clock(made, outlook=Outlook(floor=None)) == LOW
    made.gauges = Gauges(running=3, waiting=0, at=NOW)
    assert clock(made, outlook=Outlook(floor=None)) == MAX


def test_sequences_of_others_count_in_the_step() -> None:
    ours, shared = instance([2000] * 20), instance([2000] * 20)
    shared.gauges = Gauges(running=200, waiting=0, at=NOW)
    tight = Objectives(PLAIN.ttft, Seconds(0.03), None, None)
    assert clock(shared, tight) > clock(ours, tight)


def test_a_kv_cache_that_will_overflow_is_drained_at_maximum_clock() -> None:
    full, roomy = instance([4000] * 100), instance([3000] * 100)
    assert full.limits.kv_capacity == 440_000
    decision, _ = choose(full, Outlook(floor=LOW), PLAIN, RULES, Memory(), NOW)
    assert (decision.clock, decision.reason) == (MAX, Reason.KV)
    assert clock(roomy) < MAX


def test_static_mode_holds_its_clock_whatever_the_load() -> None:
    rules = GovernorRules(static_clock=MegaHertz(1200))
    decision, _ = choose(instance([500] * 200, [9000], 0.3), Outlook(), PLAIN, rules, Memory(), NOW)
    assert (decision.clock, decision.reason) == (1200, Reason.STATIC)


def test_an_objective_out_of_reach_gives_maximum_clock_and_says_so() -> None:
    decision, _ = choose(instance([500], [9000], 0.39), Outlook(floor=LOW), PLAIN, RULES, Memory(), NOW)
    assert (decision.clock, decision.reason) == (MAX, Reason.OVERLOAD)


def test_a_full_engine_that_is_too_slow_has_no_room_for_more() -> None:
    full = instance([500] * 8)
    full.slots = 8
    hasty = Objectives(PLAIN.ttft, Seconds(1e-4), None, None)
    decision, _ = choose(full, Outlook(floor=LOW), hasty, RULES, Memory(), NOW)
    assert (decision.clock, decision.at_max.decoding) == (MAX, 8)


def test_the_sentence_tells_tpot_expected_and_allowed() -> None:
    decision, _ = choose(instance([500] * 14), Outlook(floor=LOW), PLAIN, RULES, Memory(), NOW)
    assert "of 100 expected with 14 running" in decision.sentence


def reading(made: Instance, tokens: int, at: MegaHertz) -> float:
    """Seconds until so many prompt tokens are read beside what is decoded."""
    chunk = made.limits.chunk_budget
    parts = [chunk] * (tokens // chunk) + [tokens % chunk]
    beside = made.book.decoding, made.book.context
    batches = (Batch(*beside, part, 0.5 * part * part) for part in parts if part)
    return sum(MODEL.iteration_time(batch, at) for batch in batches)


@settings(deadline=None)
@given(contexts, st.lists(st.integers(1, 9000), min_size=1, max_size=6), st.sampled_from([512, 2048, 8192]))
def test_what_is_read_leaves_room_for_a_short_prompt_or_is_read_close_to_the_best(
    decoding: list[int], waiting: list[int], chunk: int
) -> None:
    """With credit one iteration is looked at, without all that the engine has."""
    made = instance(decoding, waiting)
    made.limits = Limits(256, chunk, 440_000)
    left = min(PLAIN.ttft) - reading(made, 256, MAX)
    for credit, tokens, near in ((True, min(sum(waiting), chunk), 1.2), (False, sum(waiting), 1.0)):
        chosen = clock(made, outlook=Outlook(floor=LOW, credit=credit))
        limit = max(left, near * reading(made, tokens, MAX)) + 1e-3
        assert chosen == MAX or reading(made, tokens, chosen) <= limit


@settings(deadline=None)
@given(contexts, prompts, st.sampled_from([512, 2048, 8192]))
def test_without_credit_no_clock_is_lower_than_with_it(
    decoding: list[int], waiting: list[int], chunk: int
) -> None:
    made = instance(decoding, waiting)
    made.limits = Limits(256, chunk, 440_000)
    low, high = (clock(made, outlook=Outlook(floor=LOW, credit=credit)) for credit in (True, False))
    assert low <= high


@settings(deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=60), st.floats(0.0, 0.8), st.floats(0.5, 20.0))
def test_the_more_time_prompts_of_others_take_the_higher_the_clock_for_an_end_in_time(
    decoding: list[int], share: float, e2e: float
) -> None:
    made = instance(decoding)
    for one in made.book.flights.values():
        one.e2e = Seconds(5.0 + e2e)
    aims = Objectives(PLAIN.ttft, PLAIN.tpot, Seconds(5.0 + e2e), None)
    alone = clock(made, aims, Outlook(floor=LOW))
    assert clock(made, aims, Outlook(floor=LOW, prompt_share=share)) >= alone


def test_frequent_full_chunks_may_not_stall_the_streams_and_rare_ones_may() -> None:
    tight = Objectives(PLAIN.ttft, Seconds(0.03), None, None)
    made = instance([500] * 10)
    often = clock(made, tight, Outlook(floor=LOW, full_chunks=5.0))
    rarely = clock(made, tight, Outlook(floor=LOW, full_chunks=0.01))
    chunk = Batch(10, made.book.context, 2048, 0.5 * 2048 * 2048)
    assert MODEL.iteration_time(chunk, often) <= 2.0 * tight.tpot
    assert rarely < often
