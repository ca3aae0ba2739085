"""The gate over a fleet without sockets: who is let in, who waits, who is told what."""

import asyncio
import random
from collections.abc import Sequence
from contextlib import AsyncExitStack

import pytest

from control.admission import AdmissionRules
from control.governor import GovernorRules
from control.holdback import HoldbackRules
from control.state import Instance, Limits, LoadBook, PoolRules
from control.steering import Steering
from joulegate.domain import Cuts, LengthQuery, Objectives, RequestType, Size
from joulegate.units import Seconds
from predictor.length import HistoryPredictor
from router.accounts import Accounts
from router.errors import GatewayBusy, GatewayError, NoSuchModel, PoolDown, RateLimited, Shed
from router.fleet import Health, InstanceStatus
from router.gate import FleetGate
from router.holdback_meter import HoldbackMeter
from router.pools import Fleet, Member, Model, Pool
from router.ports import Caller, Ending, Endpoint, Engine, RelayRequest, Report
from router.rate_limits import KeyLimits, RateLimits
from router.responses import Makers
from router.speed import Speed
from router.tally import Tally

EVERY = frozenset(RequestType(i, o) for i in Size for o in Size)
OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, None)


class House:
    """A gate over one model with one pool of instances of `slots` each, and a clock one can turn."""

    def __init__(
        self, instances: int = 2, slots: int = 1, shed: bool = False, queue_limit: int = 100
    ) -> None:
        self.now = 100.0
        self.woken = 0
        rules = PoolRules("all", OBJECTIVES, EVERY, shed)
        self.members = tuple(_member(f"i{n}", slots) for n in range(instances))
        laws = [member.law for member in self.members]
        rng = random.Random(7).randrange
        steering = Steering([rules], laws, AdmissionRules(), GovernorRules(), rng)
        queue = steering.queues["all"]
        self.pool = Pool(rules, "advise", None, self.members, queue, queue_limit)
        cuts = Cuts()
        model = Model("m", ("alias",), cuts, {"all": self.pool}, steering, HistoryPredictor(cuts), True)
        self.fleet = Fleet({"m": model, "alias": model})
        self.accounts = Accounts(self.fleet, Tally())
        limits = RateLimits({"k": KeyLimits(concurrency=1)}, Seconds(self.now))
        self.gate = FleetGate(
            self.fleet, self.accounts, limits, Makers(), 0.1, rng, lambda: self.now, self.wake
        )

    def wake(self) -> None:
        self.woken += 1

    def request(self, model: str = "m", fingerprint: int = 1, **changes: object) -> RelayRequest:
        fields = {
            "id": "r",
            "route": "/v1/chat/completions",
            "generative": True,
            "stream": True,
            "caller": Caller(),
            "query": LengthQuery(model=model, key="", input_tokens=0),
            "input_chars": 400,
            "fingerprint": fingerprint,
            "arrived": Seconds(self.now),
        }
        return RelayRequest(**{**fields, **changes})  # type: ignore[arg-type]

    @property
    def open(self) -> Sequence[int]:
        return [member.open for member in self.members]


def _member(name: str, slots: int) -> Member:
    law = Instance(name, "all", LoadBook(), Limits(), None, slots=slots)
    status = InstanceStatus(Endpoint(name, "all", Engine.VLLM, "127.0.0.1", 1), Health.UP)
    return Member("m", law, status, None, (), slots, Speed(None), HoldbackMeter(name, HoldbackRules(0.0)))


OK = Report(Ending.OK, 200, prompt_tokens=100, completion_tokens=7, events=7)
DOWN = Report(Ending.UPSTREAM_DOWN, 0, error="reset")


async def test_a_request_gets_a_place_and_gives_it_back() -> None:
    house = House()
    async with house.gate.admit(house.request()) as slot:
        assert sum(house.open) == 1
        assert slot.header_lines.endswith((b"x-joulegate-instance: i0\r\n", b"x-joulegate-instance: i1\r\n"))
        slot.progress(1, Seconds(house.now))
        slot.close(OK)
        slot.close(DOWN)
    assert house.open == [0, 0]
    assert house.pool.tally.outcomes == {"ok": 1}


async def test_when_every_slot_is_taken_the_next_waits_for_the_first_to_leave() -> None:
    house = House(instances=1)
    async with house.gate.admit(house.request()) as first:
        second = asyncio.create_task(_hold(house))
        await asyncio.sleep(0)
        assert len(house.pool.queue) == 1
        first.close(OK)
    assert await second == "i0"
    assert house.open == [0]


async def _hold(house: House) -> str:
    async with house.gate.admit(house.request()) as slot:
        slot.close(OK)
        return slot.endpoint.name


async def test_leaving_the_queue_leaves_nothing_behind() -> None:
    house = House(instances=1)
    async with house.gate.admit(house.request()) as first:
        waiting = asyncio.create_task(_hold(house))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(house.pool.queue) == 0
        first.close(OK)
    assert house.open == [0]
    assert house.pool.tally.outcomes == {"client_left": 1, "ok": 1}


async def test_cancelled_in_the_moment_of_the_grant_the_place_is_given_back() -> None:
    house = House(instances=1)
    async with house.gate.admit(house.request()) as first:
        waiting = asyncio.create_task(_hold(house))
        await asyncio.sleep(0)
        first.close(OK)  # grants the waiting one, which has not run yet
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert house.open == [0]
    assert house.members[0].law.book.running == 0


async def test_an_exception_in_the_block_closes_the_slot() -> None:
    house = House()
    with pytest.raises(ZeroDivisionError):
        async with house.gate.admit(house.request()):
            raise ZeroDivisionError
    assert house.open == [0, 0]
    assert house.pool.tally.outcomes == {"upstream_error": 1}


@pytest.mark.parametrize(("shed", "error"), [(False, Shed), (True, RateLimited)])
async def test_a_full_queue_refuses_with_retry_after(shed: bool, error: type[GatewayError]) -> None:
    house = House(instances=1, shed=shed, queue_limit=0)
    async with house.gate.admit(house.request()) as slot:
        with pytest.raises(error) as refused:
            await house.gate.admit(house.request()).__aenter__()
        assert refused.value.retry_after is not None
        slot.close(OK)
    assert len(house.pool.queue) == 0


async def test_models_are_known_by_name_and_alias_and_a_lone_one_needs_no_name() -> None:
    house = House()
    for name in ("m", "alias", ""):
        async with house.gate.admit(house.request(name)) as slot:
            slot.close(OK)
    with pytest.raises(NoSuchModel):
        await house.gate.admit(house.request("other")).__aenter__()
    assert [card.id for card in house.gate.models()] == ["alias", "m"]


async def test_with_every_instance_down_requests_are_told_so_queued_ones_too() -> None:
    house = House(instances=1)
    async with house.gate.admit(house.request()) as slot:
        waiting = asyncio.create_task(_hold(house))
        await asyncio.sleep(0)
        house.members[0].status.health = Health.DOWN
        house.gate.changed(Seconds(house.now))
        with pytest.raises(PoolDown, match="i0 down"):
            await waiting
        slot.close(DOWN)
    with pytest.raises(PoolDown):
        await house.gate.admit(house.request()).__aenter__()
    assert house.open == [0]


async def test_a_failure_is_tried_once_more_elsewhere_within_the_budget() -> None:
    house = House()
    house.pool.retries = 1.0
    async with house.gate.admit(house.request()) as slot:
        slot.close(DOWN)
    again = house.gate.again(slot, DOWN)
    assert again is not None
    async with again as second:
        second.close(OK)
    assert house.pool.tally.retried == 1
    async with house.gate.admit(house.request()) as slot:
        slot.close(DOWN)
    assert house.gate.again(slot, DOWN) is None, "the budget is spent"


async def test_a_query_of_death_harms_at_most_two_instances() -> None:
    house = House(instances=4)
    for _ in range(2):
        async with house.gate.admit(house.request(fingerprint=13)) as slot:
            slot.sent(Seconds(house.now))
            slot.close(DOWN)
            slot_member = next(m for m in house.members if m.law.name == slot.endpoint.name)
            slot_member.status.health = Health.DOWN
            house.gate.changed(Seconds(house.now))
    assert house.gate.again(slot, DOWN) is None
    with pytest.raises(PoolDown, match="two instances"):
        await house.gate.admit(house.request(fingerprint=13)).__aenter__()
    async with house.gate.admit(house.request(fingerprint=14)) as other:
        other.close(OK)
    house.now += 61.0
    async with house.gate.admit(house.request(fingerprint=13)) as later:
        later.close(OK)


async def test_a_query_that_kills_after_its_first_token_is_one_of_death_too() -> None:
    house = House(instances=4)
    for _ in range(2):
        async with house.gate.admit(house.request(fingerprint=13)) as slot:
            slot.sent(Seconds(house.now))
            slot.close(Report(Ending.UPSTREAM_DOWN, 200, first_output=Seconds(house.now)))
            next(m for m in house.members if m.law.name == slot.endpoint.name).status.health = Health.DOWN
    with pytest.raises(PoolDown, match="two instances"):
        await house.gate.admit(house.request(fingerprint=13)).__aenter__()


async def test_what_is_answered_again_and_again_is_not_blamed_for_engines_that_are_killed() -> None:
    house = House(instances=4)
    async with house.gate.admit(house.request(fingerprint=13)) as slot:
        slot.close(OK)
    for member in house.members[:3]:
        async with house.gate.admit(house.request(fingerprint=13)) as slot:
            slot.sent(Seconds(house.now))
            slot.close(DOWN)
            member.status.health = Health.UP
    async with house.gate.admit(house.request(fingerprint=13)) as slot:
        slot.close(OK)


async def test_a_busy_instance_is_passed_over_not_marked_unhealthy() -> None:
    house = House(slots=8)
    async with house.gate.admit(house.request()) as slot:
        busy = slot.endpoint.name
        slot.close(Report(Ending.UPSTREAM_BUSY, 503))
    for _ in range(4):
        async with house.gate.admit(house.request()) as slot:
            assert slot.endpoint.name != busy
            slot.close(OK)
    assert all(member.status.health is Health.UP for member in house.members)


async def test_a_prompt_that_no_engine_takes_keeps_nobody_waiting_for_an_empty_cache() -> None:
    house = House(instances=1, slots=8)
    [member] = house.members
    member.law.limits = Limits(kv_capacity=1000)
    member.status.context = 500
    house.fleet.models["m"].hear_contexts()
    async with house.gate.admit(house.request()), house.gate.admit(house.request(input_chars=10**7)) as slot:
        assert slot.endpoint.name == "i0"
        [_, flight] = member.law.book.flights.values()
        assert flight.input_tokens == 500


def test_the_longest_context_of_a_model_is_that_of_any_engine_that_says_one() -> None:
    house = House(instances=3)
    model, heard = house.fleet.models["m"], list[int | None]()
    for contexts in ((None, None, None), (4096, None, 8192), (4096, None, None)):
        for member, context in zip(house.members, contexts, strict=True):
            member.status.context = context
        model.hear_contexts()
        heard.append(model.longest)
    assert heard == [None, 8192, 4096]


async def test_a_draining_gateway_takes_nobody_new() -> None:
    house = House()
    house.fleet.draining = True
    with pytest.raises(GatewayBusy):
        await house.gate.admit(house.request()).__aenter__()


async def test_what_produces_no_tokens_is_not_queued() -> None:
    house = House(instances=1)
    async with (
        house.gate.admit(house.request()) as slot,
        house.gate.admit(house.request(generative=False)) as plain,
    ):
        assert house.open == [2]
        plain.close(Report(Ending.OK, 200))
        slot.close(OK)
    assert house.open == [0]


async def test_characters_per_token_are_learned_from_usage() -> None:
    house = House()
    for _ in range(200):
        async with house.gate.admit(house.request()) as slot:  # 400 characters, 200 tokens
            slot.close(Report(Ending.OK, 200, prompt_tokens=200, completion_tokens=5, events=5))
    assert house.fleet.models["m"].chars_per_token.value == pytest.approx(2.0, rel=0.05)
    assert house.fleet.requests[-1].input_tokens == pytest.approx(200, rel=0.05)


async def test_answers_are_passed_on_to_the_predictor_outside_the_path() -> None:
    house = House()
    async with house.gate.admit(house.request()) as slot:
        slot.close(OK)
    assert house.accounts.teach(10) == 1
    assert house.accounts.teach(10) == 0


async def test_a_key_over_its_limit_is_refused_and_free_again_when_its_request_ends() -> None:
    house = House()
    request = house.request(caller=Caller(name="k"))
    async with house.gate.admit(request) as slot:
        with pytest.raises(RateLimited):
            await house.gate.admit(request).__aenter__()
        slot.close(OK)
    async with house.gate.admit(request) as slot:
        slot.close(OK)


async def test_an_instance_that_cannot_be_reached_says_nothing_about_the_body() -> None:
    house = House(instances=4)
    for _ in range(3):
        async with house.gate.admit(house.request(fingerprint=13)) as slot:
            slot.close(DOWN)  # never sent
    async with house.gate.admit(house.request(fingerprint=13)) as slot:
        slot.close(OK)


async def test_a_second_attempt_goes_to_another_instance_or_nowhere() -> None:
    house = House(instances=2, slots=4)
    for _ in range(8):
        async with house.gate.admit(house.request()) as slot:
            slot.close(DOWN)
        again = house.gate.again(slot, DOWN)
        assert again is not None
        async with again as second:
            assert second.endpoint.name != slot.endpoint.name
            second.close(OK)
        for member in house.members:
            member.status.health = Health.UP
        house.pool.retries = 3.0
    house.members[1].status.health = Health.DOWN
    house.gate.changed(Seconds(house.now))
    async with house.gate.admit(house.request()) as slot:
        slot.close(DOWN)
    assert house.gate.again(slot, DOWN) is None
    assert house.open == [0, 0]


async def test_what_produces_no_tokens_is_tried_once_more_under_the_same_rules() -> None:
    house = House()
    request = house.request(generative=False)
    house.pool.retries = 1.0
    for expected in (True, False):
        async with house.gate.admit(request) as slot:
            slot.close(DOWN)
        again = house.gate.again(slot, DOWN)
        assert (again is not None) is expected, "the budget is spent"
        if again is not None:
            async with again as second:
                assert second.endpoint.name != slot.endpoint.name
                second.close(OK)
    house.pool.retries = 1.0
    house.members[1].status.health = house.members[0].status.health = Health.DOWN
    assert house.gate.again(slot, DOWN) is None, "there is no other"
    assert house.open == [0, 0]


async def test_an_instance_that_failed_its_last_request_is_asked_last() -> None:
    house = House(instances=2, slots=2)
    house.members[0].status.health = Health.SUSPECT
    house.gate.changed(Seconds(house.now))
    names = []
    async with AsyncExitStack() as stack:
        for _ in range(3):
            slot = await stack.enter_async_context(house.gate.admit(house.request()))
            names.append(slot.endpoint.name)
        assert names == ["i1", "i1", "i0"]
