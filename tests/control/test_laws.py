"""Projection, floor, twin, prices, arrivals, classes, verify and pick: what each promises."""

import json
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.arrivals import Arrivals
from control.classify import classify, output_size, pool_for
from control.floor import Demand, cheapest, going_price, settle
from control.pick import pick
from control.prices import PriceRules, Prices
from control.projection import Load, Pace, crowd, drain, dues, ends_met, peak_kv, within_reach
from control.state import Flight, Instance, Limits, LoadBook, PoolRules, Room
from control.twin import Twin, Twinned
from control.verify import Action, VerifyRules, judge
from joulegate.domain import Batch, Cuts, LengthPrediction, Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz, Seconds
from predictor.physics import PhysicsModel

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"
MODEL = PhysicsModel(parse_profile(json.loads((PROFILES / "h100_llama-3.1-8b_tp1.json").read_text())))
MAX = MODEL.clocks[-1]
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)
SLOWED = Objectives(AIMS.ttft, AIMS.tpot, None, 1.2)
EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)
CHAT = Demand(rate=8.0, input_tokens=1000.0, context_tokens=1000.0, output_tokens=200.0)


def flight(
    n: int,
    tokens: int = 100,
    output: float = 50.0,
    arrived: float = 0.0,
    ttft: float = 0.4,
    e2e: float | None = None,
) -> Flight:
    return Flight(
        id=str(n),
        type=RequestType(Size.M, Size.M),
        input_tokens=tokens,
        uncached_tokens=tokens,
        output_q50=output,
        output_q90=output,
        arrived=Seconds(arrived),
        ttft=Seconds(ttft),
        tpot=Seconds(0.1),
        e2e=None if e2e is None else Seconds(e2e),
    )


def booked(*flights: Flight) -> LoadBook:
    """All of them decoding, one token out."""
    book = LoadBook()
    for one in flights:
        book.send(one, Seconds(0.0))
        book.progress(one, 1.0, Seconds(0.0))
    return book


sequences = st.lists(st.tuples(st.integers(1, 3000), st.integers(2, 800)), min_size=1, max_size=30)


# -- the scoreboard


@settings(deadline=None)
@given(sequences, st.randoms(use_true_random=False))
def test_the_scoreboard_agrees_with_a_count_from_scratch(
    rows: list[tuple[int, int]], draw: random.Random
) -> None:
    book, flights = LoadBook(), [flight(n, tokens, output) for n, (tokens, output) in enumerate(rows)]
    for one in flights:
        book.send(one, Seconds(1.0))
        if draw.random() < 0.7:
            book.progress(one, draw.randrange(1, 50), Seconds(2.0))
        if draw.random() < 0.3:
            book.close(one)
            book.close(one)  # a second time does nothing
    alive = list(book.flights.values())
    decoding = [f for f in alive if f.first_token is not None]
    assert book.decoding == len(decoding)
    assert book.context == pytest.approx(sum(f.input_tokens + f.tokens_out for f in decoding))
    assert book.held == pytest.approx(sum(f.input_tokens + f.tokens_out for f in alive))
    assert book.queued_tokens == sum(f.uncached_tokens for f in alive if f.first_token is None)


# -- projection


@settings(deadline=None)
@given(sequences)
def test_projected_kv_peak_is_that_of_a_walk_token_by_token(rows: list[tuple[int, int]]) -> None:
    flights = [flight(n, tokens, output) for n, (tokens, output) in enumerate(rows)]
    book = booked(*flights)
    held, peak = [f.input_tokens + 1 for f in flights], 0
    left = [round(f.remaining_high) for f in flights]
    while any(left):
        peak = max(peak, sum(h for h, n in zip(held, left, strict=True) if n))
        held = [h + 1 if n else h for h, n in zip(held, left, strict=True)]
        peak = max(peak, sum(h for h, n in zip(held, left, strict=True) if n))
        left = [max(0, n - 1) for n in left]
    assert peak_kv(book) == pytest.approx(peak, abs=len(flights))


@settings(deadline=None)
@given(sequences)
def test_a_drain_covers_every_token_and_never_understates_the_batch(rows: list[tuple[int, int]]) -> None:
    flights = [flight(n, tokens, output) for n, (tokens, output) in enumerate(rows)]
    stretches = drain(booked(*flights))
    longest = max(f.remaining for f in flights)
    assert sum(s.steps for s in stretches) == pytest.approx(longest)
    done = 0.0
    for stretch in stretches:
        done += stretch.steps
        assert stretch.decoding >= sum(f.remaining > done for f in flights)
    assert all(a.decoding >= b.decoding for a, b in pairwise(stretches))


@pytest.mark.parametrize(
    ("times", "kept"),
    [(10.0, True), (1.1, False), (0.9, True)],
    ids=["in reach", "in reach of maximum clock only", "out of reach of any clock"],
)
def test_an_e2e_objective_asks_for_the_clock_that_keeps_it_if_there_is_one(times: float, kept: bool) -> None:
    """`times`: of what maximum clock takes."""
    load = Load(10, 5_500.0, 0, 2048)
    slow, fast = Pace(MODEL, load, MODEL.clocks[0]), Pace(MODEL, load, MAX)
    flights = [flight(n, 500, 100, e2e=times * 99.0 * fast.step) for n in range(10)]
    assert in_time(flights, slow, fast) is kept


def test_an_answer_that_is_due_first_is_not_given_up_for_longer_ones_beside_it() -> None:
    load = Load(40, 22_000.0, 0, 2048)
    slow, fast = Pace(MODEL, load, MODEL.clocks[0]), Pace(MODEL, load, MAX)
    long = [flight(n, 500, 500, e2e=1000.0) for n in range(39)]
    assert in_time(long, slow, fast)
    assert not in_time([flight(39, 500, 395, e2e=1.1 * 394.0 * fast.step), *long], slow, fast)


def in_time(flights: list[Flight], slow: Pace, fast: Pace) -> bool:
    """Whether `slow` keeps every end that `fast` keeps."""
    return ends_met(within_reach(booked(*flights), fast, 0.0, 0.0), slow, 0.0, 1.05, 0.0)


@given(st.floats(0.0, 200_000.0), st.floats(0.0, 100.0), st.floats(0.0, 30.0))
def test_a_crowd_that_a_short_answer_can_bear_at_one_clock_it_can_bear_at_the_next(
    tokens: float, short: float, age: float
) -> None:
    load = Load(40, 40_000.0, tokens, 2048)
    paces = [Pace(MODEL, load, clock) for clock in MODEL.clocks[::10]]
    found = crowd(load, short, Seconds(0.0), paces[0], Seconds(age))
    assert (found is None) == (tokens <= 2048)
    if found is not None:
        kept = [found.met(pace, Seconds(0.06), 1.05) for pace in paces]
        assert kept == sorted(kept)


def test_a_crowd_spoils_short_answers_when_it_is_long_and_answers_are_known_to_be_short() -> None:
    def bearable(tokens: float, short: float) -> bool:
        load = Load(40, 40_000.0, tokens, 2048)
        slowest = Pace(MODEL, load, MODEL.clocks[0])
        found = crowd(load, short, None, slowest, Seconds(9.0))
        return found is None or found.met(slowest, Seconds(0.06), 1.0)

    assert bearable(2_000, 20.0)
    assert bearable(8_000, 100.0)
    assert not bearable(60_000, 20.0)
    assert bearable(60_000, 0.0)


def test_prompts_that_share_an_iteration_end_with_it() -> None:
    due = dues(
        [flight(1, 1000, arrived=0.0), flight(2, 500, arrived=0.3), flight(3, 1000, arrived=0.5)], 2048
    )
    assert list(due.by) == pytest.approx([0.4, 0.9])
    assert due.tokens == 2500


def test_lost_prompts_take_time_but_are_due_at_no_time() -> None:
    late = flight(1, 1000)
    late.lost = True
    assert dues([late], 2048).by == (float("inf"),)


# -- the floor of the load


@settings(deadline=None)
@given(st.floats(0.1, 14.0), st.sampled_from(MODEL.clocks))
def test_a_slower_clock_keeps_more_in_the_system(rate: float, clock: MegaHertz) -> None:
    demand = Demand(rate, 1000.0, 1000.0, 200.0)
    here, fastest = settle(MODEL, demand, clock, 2048), settle(MODEL, demand, MAX, 2048)
    assert here.in_system >= fastest.in_system - 1e-9


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 12.0), st.floats(0.0, 50.0), st.floats(0.0, 50.0))
def test_a_higher_price_of_delay_never_lowers_the_clock(rate: float, price: float, more: float) -> None:
    demand = Demand(rate, 1000.0, 1000.0, 200.0)
    clocks = [
        min(
            MODEL.clocks,
            key=lambda clock, p=p: (_cost(demand, clock, p), -clock),  # type: ignore[misc]
        )
        for p in (price, price + more)
    ]
    assert clocks[1] >= clocks[0]


def _cost(demand: Demand, clock: MegaHertz, price: float) -> float:
    steady = settle(MODEL, demand, clock, 2048)
    return steady.watts + price * steady.in_system if steady.in_system < float("inf") else float("inf")


def test_the_search_finds_what_trying_every_clock_finds() -> None:
    for price in (0.0, 3.0, 30.0):
        best = min(_cost(CHAT, clock, price) for clock in MODEL.clocks)
        assert _cost(CHAT, cheapest(MODEL, CHAT, 2048, price), price) <= best * 1.005


def test_a_load_no_clock_can_serve_gets_the_highest() -> None:
    assert cheapest(MODEL, Demand(1000.0, 4000.0, 4000.0, 500.0), 2048) == MAX


def test_the_going_price_of_a_stretch_is_the_price_that_leads_to_it() -> None:
    price = going_price(MODEL, CHAT, 2048, 1.25)
    clock = cheapest(MODEL, CHAT, 2048, price)
    ratio = settle(MODEL, CHAT, clock, 2048).in_system / settle(MODEL, CHAT, MAX, 2048).in_system
    assert ratio == pytest.approx(1.25, abs=0.1)


@pytest.mark.parametrize("clocks", [(510, 1245, 1980), tuple(range(510, 1981, 105))], ids=["3", "15"])
def test_with_few_clocks_each_is_found_from_its_neighbours(clocks: tuple[MegaHertz, ...]) -> None:
    """However the last search ended, the next finds what one that starts anew does."""
    model = PhysicsModel(replace(MODEL.profile, clocks=clocks))
    for price in (0.0, 3.0, 30.0, 300.0):
        found = cheapest(model, CHAT, 2048, price)
        for near in clocks:
            for _ in clocks:
                near = cheapest(model, CHAT, 2048, price, near=near)
            assert near == found


def test_the_going_price_between_few_clocks_is_where_the_two_around_the_stretch_cost_the_same() -> None:
    slow, fast = MegaHertz(1200), MegaHertz(1300)
    model = PhysicsModel(replace(MODEL.profile, clocks=(MegaHertz(510), slow, fast, MAX)))
    costs = [settle(MODEL, CHAT, clock, 2048) for clock in (slow, fast)]
    stretch = costs[1].in_system / settle(MODEL, CHAT, MAX, 2048).in_system + 1e-6
    price = going_price(model, CHAT, 2048, stretch)
    assert cheapest(model, CHAT, 2048, 1.01 * price) == fast
    assert cheapest(model, CHAT, 2048, 0.99 * price) == slow


# -- the twin and the prices


def test_the_twin_of_one_request_alone_takes_its_own_prefill_and_steps() -> None:
    twin, one = Twin(MODEL, 2048, 256), flight(1, 1000)
    one.tokens_out = 101.0
    assert twin.add(one) == []
    ended = twin.add(flight(2, 10, arrived=1000.0))
    prefill = MODEL.iteration_time(Batch(0, 0.0, 1000, 500_000.0), MAX)
    steps = sum(MODEL.iteration_time(Batch(1, 1001.0 + n), MAX) for n in range(100))
    assert [t.ttft for t in ended] == [pytest.approx(prefill)]
    assert [t.e2e for t in ended] == [pytest.approx(prefill + steps, rel=1e-3)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.integers(1, 4000), st.integers(1, 300)), max_size=40))
def test_the_twin_serves_everybody_once_and_never_before_arrival(rows: list[tuple[float, int, int]]) -> None:
    twin, at, ended = Twin(MODEL, 2048, 256), 0.0, list[Twinned]()
    for n, (gap, tokens, output) in enumerate(rows):
        at += gap
        one = flight(n, tokens, arrived=at)
        one.tokens_out = float(output)
        ended += twin.add(one)
    ended += twin.add(flight(9999, arrived=at + 10_000.0))
    assert sorted(int(t.flight.id) for t in ended) == list(range(len(rows)))
    assert all(0.0 < t.ttft <= t.e2e for t in ended)


def test_in_the_twin_a_prompt_waits_for_room_in_the_kv_cache() -> None:
    full, roomy = Twin(MODEL, 2048, 256, 3000), Twin(MODEL, 2048, 256)
    told = list[list[Twinned]]()
    for twin in (full, roomy):
        for n in range(3):
            one = flight(n, 1400, arrived=0.01 * n)
            one.tokens_out = 100.0
            twin.add(one)
        told.append(sorted(twin.add(flight(9, arrived=1000.0)), key=lambda t: t.flight.arrived))
    third, first = told[0][2], told[0][0]
    assert third.ttft + third.flight.arrived > first.e2e  # two are in the cache until the first has ended
    assert told[1][2].ttft + 0.02 < told[1][0].e2e
    assert told[0][0].e2e < told[1][0].e2e  # in a smaller batch


def test_a_prompt_larger_than_the_kv_cache_is_served_alone_in_the_twin() -> None:
    twin, one = Twin(MODEL, 2048, 256, 3000), flight(1, 5000)
    one.tokens_out = 10.0
    twin.add(one)
    assert [t.flight.id for t in twin.add(flight(2, arrived=1000.0))] == ["1"]


def twinned(late: float, twin_late: float = 0.1, e2e: float = 1.0, twin_e2e: float = 1.0) -> Twinned:
    """A request that used `late` of its TTFT objective here, `twin_late` in the twin."""
    one = flight(1)
    one.first_token, one.last_token = Seconds(0.4 * late), Seconds(max(0.4 * late, e2e))
    one.tokens_out = 20.0
    return Twinned(one, Seconds(0.4 * twin_late), Seconds(twin_e2e))


def prices(objectives: Objectives = AIMS) -> Prices:
    made = Prices(PriceRules(), objectives)
    made.start = 10.0
    return made


def test_the_price_falls_while_everybody_is_in_time_and_rises_with_a_miss() -> None:
    made = prices()
    for _ in range(500):
        made.observe(twinned(0.5))
    calm = made.price
    made.observe(twinned(1.5))
    assert calm < 10.0
    assert made.price > calm


def test_a_miss_that_maximum_clock_would_have_had_too_does_not_count_as_ours() -> None:
    made, ours = prices(), prices()
    for _ in range(300):
        made.observe(twinned(1.2, twin_late=1.4))
        ours.observe(twinned(1.2, twin_late=0.2))
    assert made.price < 10.0 < ours.price


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0)), max_size=200))
def test_no_history_takes_the_price_out_of_its_bounds(history: list[tuple[float, float]]) -> None:
    made, rules = prices(), PriceRules()
    for here, there in history:
        made.observe(twinned(here, twin_late=there))
        assert rules.lowest * 10.0 <= made.price * 1.000001
        assert made.price <= rules.highest * 10.000001


@pytest.mark.parametrize(("times", "end"), [(0.3, "lowest"), (3.0, "highest")])
def test_the_price_has_no_rest_where_misses_come_at_another_rate_than_allowed(times: float, end: str) -> None:
    """Misses within the tail of first tokens, so that attainment alone counts them."""
    rules, made = PriceRules(), prices()
    every = round(1.0 / (times * rules.attainment))
    for n in range(10_000):
        made.observe(twinned(1.03 if n % every == 0 else 0.5, twin_late=0.95 if n % 50 == 0 else 0.1))
    assert made.price == pytest.approx(10.0 * getattr(rules, end), rel=0.3)


def test_after_a_burst_of_misses_the_price_comes_down_slower_than_before_it() -> None:
    made = prices()
    levels = []
    for n in range(900):
        made.observe(twinned(1.5 if 400 <= n < 410 else 0.5))
        levels.append(made.level)
    assert levels[0] - levels[399] > 1.5 * (levels[420] - levels[819]) > 0.0


def test_where_the_twin_uses_up_the_tail_less_is_allowed() -> None:
    """As many misses more than the twin, beside a twin in time and beside one that has a tail itself."""
    rules = PriceRules(attainment=0.5)
    made, beside = Prices(rules, AIMS), Prices(rules, AIMS)
    for n in range(3000):
        ours, both = n % 250 == 60, n % 125 == 30
        made.observe(twinned(2.5 if ours else 0.5))
        beside.observe(twinned(2.5 if ours or both else 0.5, twin_late=2.5 if both else 0.1))
    assert beside.level > made.level + 0.1


@settings(deadline=None, max_examples=50)
@given(st.floats(1.02, 4.0), st.floats(0.1, 0.95))
def test_where_maximum_clock_misses_an_objective_ours_may_be_as_much_later_again_a_tenth_at_most(
    best: float, share: float
) -> None:
    """`best`: P99 at maximum clock; attainment allows whatever it misses itself."""
    within, beyond = prices(), prices()
    leeway = min(best - 1.0, 0.1 * best)
    for _ in range(200):
        within.observe(twinned(best + share * leeway, twin_late=best))
        beyond.observe(twinned(best + leeway / share, twin_late=best))
    assert within.price < 10.0 < beyond.price


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 1.0), st.floats(1.001, 1.1))
def test_where_maximum_clock_meets_an_objective_nobody_may_miss_it(best: float, late: float) -> None:
    made = prices()
    for _ in range(100):
        made.observe(twinned(late, twin_late=best))
    assert made.price > 10.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0)), max_size=200))
def test_no_history_gives_more_credit_than_there_is(history: list[tuple[float, float]]) -> None:
    made = prices()
    for here, there in history:
        made.observe(twinned(here, twin_late=there))
        assert made.credit <= 1.0


@settings(deadline=None, max_examples=50)
@given(st.floats(1.5, 5.0), st.floats(1.0, 1.4))
def test_a_crowd_that_is_over_excuses_no_miss(crowd: float, late: float) -> None:
    """Misses within what maximum clock's were in the crowd, after as many in time as are judged together."""
    made = prices()
    for _ in range(300):
        made.observe(twinned(0.5, twin_late=crowd))
    for _ in range(150):
        made.observe(twinned(0.5))
    calm = made.price
    for _ in range(10):
        made.observe(twinned(late + 0.01))
    assert made.price > calm
    assert made.credit < 0.0


def test_credit_is_that_of_the_objective_that_has_least() -> None:
    """Maximum clock misses more in all, ours one size of prompts."""
    made = prices()
    for n in range(400):
        one = twinned(0.5, twin_late=1.5 if n % 40 == 0 else 0.1)
        one.flight.type = RequestType(Size.L, Size.M)
        made.observe(one)
    assert made.credit >= 1.0
    for n in range(100):
        made.observe(twinned(1.5 if n % 20 == 0 else 0.5))
    assert made.credit < 0.0


def test_slowdown_beyond_the_limit_raises_the_price_and_within_it_lowers_it() -> None:
    slow, quick = prices(SLOWED), prices(SLOWED)
    for _ in range(300):
        slow.observe(twinned(0.1, e2e=1.4))
        quick.observe(twinned(0.1, e2e=1.05))
    assert quick.price < 10.0 < slow.price


def test_a_slowdown_that_has_just_begun_is_answered_before_a_long_run_shows_it() -> None:
    made, patient = prices(SLOWED), Prices(PriceRules(slowdown_haste=0.0), SLOWED)
    patient.start = 10.0
    for n in range(1200):
        for one in (made, patient):
            one.observe(twinned(0.1, e2e=1.1 if n < 900 else 1.6))
    assert made.slowdown == patient.slowdown < 1.2
    assert made.price > 1.5 * patient.price


@pytest.mark.parametrize("e2e", [Seconds(30.0), None])
def test_long_answers_that_are_late_count_by_their_tokens_where_late_goes_with_long(
    e2e: Seconds | None,
) -> None:
    aims = Objectives(AIMS.ttft, AIMS.tpot, e2e, None)
    long, short = prices(aims), prices(aims)
    for made, tokens in ((long, 400.0), (short, 20.0)):
        for n in range(600):
            one = twinned(1.03 if n == 500 else 0.5, twin_late=0.95 if n % 50 == 0 else 0.1)
            one.flight.tokens_out = tokens if n == 500 else 20.0
            made.observe(one)
    assert (long.level > short.level + 1.0) == (e2e is not None)


def test_prices_know_that_they_are_at_their_bound() -> None:
    made = prices()
    ratios = []
    for _ in range(300):
        made.observe(twinned(1.5))
        ratios.append(made.bound_ratio)
    assert ratios[0] < 0.5
    assert ratios[-1] == pytest.approx(1.0)


def test_a_short_output_is_one_that_most_answers_exceed() -> None:
    made = prices()
    assert made.short_output == 0.0
    for n in range(200):
        one = twinned(0.5)
        one.flight.tokens_out = float(n + 1)
        made.observe(one)
    assert made.short_output == pytest.approx(11.0)


def test_without_a_slowdown_limit_slowness_costs_nothing() -> None:
    made = prices()
    for _ in range(300):
        made.observe(twinned(0.1, e2e=1.4))
    assert made.price < 10.0


# -- arrivals


def test_the_age_of_the_load_is_counted_from_the_first_request_whoever_asked_before() -> None:
    """A control tick asks for means and rates long before anything comes."""
    made = Arrivals()
    assert made.means(Seconds(5.0)) == (0.0, 0.0)
    assert made.rate(Seconds(50.0)) == 0.0
    made.add(100.0, 50.0, Seconds(100.0))
    assert made.age(Seconds(103.0)) == pytest.approx(3.0)
    assert made.rate(Seconds(101.0)) == pytest.approx(1.0, rel=0.05), (
        "one request in the only second there was"
    )


def test_the_rate_and_the_means_follow_a_steady_stream() -> None:
    made = Arrivals()
    for n in range(2000):
        made.add(500, 120.0, Seconds(n * 0.1))
    assert made.rate(Seconds(200.0)) == pytest.approx(10.0, rel=0.05)
    assert list(made.means(Seconds(200.0))) == pytest.approx([500.0, 120.0])


def test_silence_brings_the_rate_down() -> None:
    made = Arrivals()
    for n in range(100):
        made.add(500, 120.0, Seconds(n * 0.1))
    assert made.rate(Seconds(100.0)) < 0.1


# -- classes and pools


def test_a_doubtful_length_is_taken_for_the_larger_class() -> None:
    doubtful = LengthPrediction(90.0, 300.0, (0.6, 0.3, 0.1))
    assert output_size(doubtful) == Size.M
    assert output_size(doubtful, under=1.0) == Size.S
    assert classify(2000, doubtful, Cuts()) == RequestType(Size.L, Size.M)


def test_a_type_without_a_pool_of_its_own_goes_to_the_smallest_that_dominates_it() -> None:
    medium = PoolRules("medium", AIMS, frozenset({RequestType(Size.M, Size.M)}))
    large = PoolRules("large", AIMS, frozenset({RequestType(Size.L, Size.L)}))
    assert pool_for(RequestType(Size.S, Size.M), [large, medium]) is medium
    assert pool_for(RequestType(Size.S, Size.L), [large, medium]) is large
    assert pool_for(RequestType(Size.L, Size.L), [medium]) is None


# -- verify


@pytest.mark.parametrize(
    ("seen", "reasons", "age", "attempts", "action"),
    [
        pytest.param(1200, (), 1.0, 0, Action.OK, id="as asked"),
        pytest.param(1980, (), 0.1, 0, Action.SETTLING, id="too young to judge"),
        pytest.param(900, ("thermal",), 1.0, 0, Action.HOLD, id="lower, with a reason"),
        pytest.param(1980, (), 1.0, 0, Action.REASSERT, id="above: assert again"),
        pytest.param(1980, (), 1.0, 3, Action.FAIL_UP, id="above for good: fail up"),
    ],
)
def test_a_clock_is_judged_against_its_ceiling(
    seen: int, reasons: tuple[str, ...], age: float, attempts: int, action: Action
) -> None:
    verdict = judge(
        MegaHertz(1200), MegaHertz(seen), reasons, Seconds(10.0), attempts, VerifyRules(), Seconds(10.0 + age)
    )
    assert verdict.action == action
    assert str(seen) in verdict.sentence


# -- pick


def engine(name: str, running: int, decoding: int = 10, at_max: int = 20, slots: int = 30) -> Instance:
    book = booked(*(flight(n) for n in range(running)))
    made = Instance(name, "p", book, Limits(), MODEL, slots=slots)
    made.at_clock = Room(decoding, 5000.0, Seconds(0.0))
    made.at_max = Room(at_max, 5000.0, Seconds(0.0))
    return made


loads = st.lists(st.integers(0, 30), min_size=1, max_size=6)


@settings(deadline=None)
@given(loads, st.integers(0, 1000))
def test_a_picked_instance_has_a_slot_and_no_rise_is_taken_where_none_is_needed(
    running: list[int], seed: int
) -> None:
    engines = [engine(f"e{n}", load) for n, load in enumerate(running)]
    chosen = pick(flight(99), engines, random.Random(seed).randrange)
    if chosen is None:
        assert all(load >= 30 for load in running)
        return
    load = chosen.instance.book.running
    assert load < 30
    if any(other < 10 for other in running):
        assert load < 10
    elif any(other < 20 for other in running):
        assert load < 20


def test_of_two_that_need_not_rise_the_fuller_is_taken() -> None:
    engines = [engine("a", 2), engine("b", 7)]
    draws = iter((0, 1))
    chosen = pick(flight(99), engines, lambda n: next(draws))
    assert chosen is not None
    assert chosen.instance.name == "b"


def test_a_session_stays_where_its_prefix_is() -> None:
    engines = [engine("a", 12), engine("b", 3)]
    engines[0].sessions = {"s": 4000}
    one = flight(99)
    one.session = "s"
    chosen = pick(one, engines, random.Random(1).randrange)
    assert chosen is not None
    assert (chosen.instance.name, chosen.reason) == ("a", "session")


def test_one_of_several_gateways_uses_its_share_of_the_room_only() -> None:
    engines = [engine("a", 6)]
    whole = pick(flight(99), engines, random.Random(1).randrange)
    part = pick(flight(99), engines, random.Random(1).randrange, share=0.2)
    assert whole is not None
    assert part is not None
    assert (whole.reason, part.reason) == ("no rise", "rise")


@pytest.mark.parametrize("change", [{"ready": False}, {"slots": 0}, {"limits": Limits(max_model_len=50)}])
def test_an_instance_that_cannot_take_it_is_never_picked(change: dict[str, object]) -> None:
    one = engine("a", 1)
    for name, value in change.items():
        setattr(one, name, value)
    assert pick(flight(99), [one], random.Random(1).randrange) is None
