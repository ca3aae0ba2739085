"""Budgets are kept by clocks, and by caps when the predictions are wrong."""

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.power_budget import (
    Allocation,
    Domain,
    Draw,
    Emergency,
    EmergencyPolicy,
    Phase,
    allocate,
    step,
)
from joulegate.units import MegaHertz, Seconds, Watts

CLOCKS = tuple(MegaHertz(c) for c in (600, 900, 1200, 1500, 1800))
CAPS = (Watts(100.0), Watts(700.0))


def draw(priority: int = 0, top: float = 500.0, wanted: int = 1800) -> Draw:
    """Power falls linearly to 40 % at the lowest clock."""
    *below, highest = ((c, Watts(top * (0.1 + 0.9 * c / 1800.0))) for c in CLOCKS if c <= wanted)
    return Draw(highest, CAPS, priority, lambda: below)


def site(budget: float, *names: str) -> Domain:
    return Domain("site", Watts(budget), frozenset(names))


def total(allocation: Allocation) -> float:
    return sum(share.watts for share in allocation.shares.values())


def test_under_budget_nothing_is_lowered_and_caps_share_what_is_left() -> None:
    allocation = allocate(site(1200.0, "a", "b"), {"a": draw(), "b": draw()}, 1.0)
    assert [share.clock for share in allocation.shares.values()] == [1800, 1800]
    assert [share.cap for share in allocation.shares.values()] == [600.0, 600.0]
    assert allocation.unmet == ()


def test_the_lowest_priority_gives_way_first() -> None:
    allocation = allocate(site(900.0, "a", "b"), {"a": draw(priority=1), "b": draw(priority=0)}, 1.0)
    assert allocation.shares["a"].clock == 1800
    assert allocation.shares["b"].clock < 1800
    assert total(allocation) <= 900.0


def test_a_tight_rack_does_not_slow_its_neighbour() -> None:
    racks = (
        Domain("rack-1", Watts(400.0), frozenset({"a"})),
        Domain("rack-2", Watts(600.0), frozenset({"b"})),
    )
    root = Domain("row", Watts(2000.0), children=racks)
    allocation = allocate(root, {"a": draw(), "b": draw()}, 1.0)
    assert allocation.shares["a"].watts <= 400.0
    assert allocation.shares["b"].clock == 1800


def test_a_budget_that_clocks_cannot_reach_is_held_by_caps_and_one_below_all_caps_is_named() -> None:
    draws = {"a": draw(), "b": draw()}
    held = allocate(site(300.0, "a", "b"), draws, 1.0)
    assert [share.clock for share in held.shares.values()] == [600, 600]
    assert sum(share.cap for share in held.shares.values()) == pytest.approx(300.0)
    assert held.unmet == ()
    assert allocate(site(150.0, "a", "b"), draws, 1.0).unmet == ("site",)


@st.composite
def sites(pick: st.DrawFn) -> tuple[Domain, Mapping[str, Draw]]:
    """Rows of racks of GPUs, with any budgets."""
    draws: dict[str, Draw] = {}
    rows = []
    for r in range(pick(st.integers(1, 3))):
        racks = []
        for k in range(pick(st.integers(1, 3))):
            names = [f"{r}.{k}.{i}" for i in range(pick(st.integers(1, 4)))]
            for name in names:
                wanted = pick(st.sampled_from(CLOCKS))
                draws[name] = draw(pick(st.integers(0, 2)), pick(st.floats(150.0, 700.0)), wanted)
            racks.append(Domain(f"rack-{r}.{k}", Watts(pick(st.floats(100.0, 3000.0))), frozenset(names)))
        rows.append(Domain(f"row-{r}", Watts(pick(st.floats(200.0, 8000.0))), children=tuple(racks)))
    return Domain("site", Watts(pick(st.floats(300.0, 20000.0))), children=tuple(rows)), draws


def every(domain: Domain) -> list[Domain]:
    return [domain, *(each for child in domain.children for each in every(child))]


@given(sites(), st.floats(0.5, 1.0))
@settings(deadline=None)
def test_every_domain_keeps_its_budget_or_is_named(
    case: tuple[Domain, Mapping[str, Draw]], ratio: float
) -> None:
    root, draws = case
    allocation = allocate(root, draws, ratio)
    assert allocation.shares.keys() == draws.keys()
    for domain in every(root):
        caps = sum(allocation.shares[uuid].cap for uuid in domain.members())
        assert (caps > domain.budget * ratio * (1 + 1e-9)) == (domain.name in allocation.unmet)
        if domain.name in allocation.unmet:
            assert len(domain.members()) * CAPS[0] > domain.budget * ratio, "lowest caps alone exceed it"
    for uuid, share in allocation.shares.items():
        assert share.clock <= draws[uuid].top[0]  # never above what the governor wants
        assert CAPS[0] <= share.cap <= CAPS[1]


@given(sites())
@settings(deadline=None)
def test_nobody_is_lowered_while_a_lower_priority_beside_it_still_could(
    case: tuple[Domain, Mapping[str, Draw]],
) -> None:
    root, draws = case
    flat = Domain("site", root.budget, root.members())
    shares = allocate(flat, draws, 1.0).shares
    for uuid, one in draws.items():
        if shares[uuid].clock < one.top[0]:
            for other, two in draws.items():
                if two.priority < one.priority:
                    assert shares[other].clock == (*two.below(), two.top)[0][0]


POLICY = EmergencyPolicy()


def walk(*looks: tuple[float, float, bool]) -> Emergency:
    """(seconds, watts drawn of a budget of 1000, alarm)."""
    state = Emergency()
    for now, drawn, alarm in looks:
        state = step(state, POLICY, Watts(drawn), Watts(1000.0), alarm, Seconds(now))
    return state


@pytest.mark.parametrize(
    ("looks", "phase", "ratio"),
    [
        pytest.param([(0, 900, False)], Phase.NORMAL, 1.0, id="calm"),
        pytest.param([(0, 900, True)], Phase.EMERGENCY, 0.75, id="an alarm sheds at once"),
        pytest.param([(0, 1100, False), (1, 1100, False)], Phase.NORMAL, 1.0, id="a spike does not"),
        pytest.param([(0, 1100, False), (2, 1100, False)], Phase.EMERGENCY, 0.75, id="staying above does"),
        pytest.param(
            [(0, 1100, False), (1, 900, False), (2, 1100, False), (3, 1100, False)],
            Phase.NORMAL,
            1.0,
            id="two spikes are not one long one",
        ),
        pytest.param([(0, 900, True), (299, 700, False)], Phase.EMERGENCY, 0.75, id="held for minutes"),
        pytest.param([(0, 900, True), (400, 800, False)], Phase.EMERGENCY, 0.75, id="and until it worked"),
        pytest.param([(0, 900, True), (300, 700, False)], Phase.RECOVERING, 0.75, id="then back"),
        pytest.param(
            [(0, 900, True), (300, 700, False), (360, 700, False)], Phase.RECOVERING, 0.875, id="slowly"
        ),
        pytest.param(
            [(0, 900, True), (300, 700, False), (420, 700, False)], Phase.NORMAL, 1.0, id="all the way"
        ),
        pytest.param(
            [(0, 900, True), (300, 700, False), (360, 900, True)], Phase.EMERGENCY, 0.75, id="or down again"
        ),
    ],
)
def test_emergencies(looks: list[tuple[float, float, bool]], phase: Phase, ratio: float) -> None:
    state = walk(*looks)
    assert state.phase is phase
    assert state.ratio == pytest.approx(ratio)
