"""What requests, failures and time do to the clocks of a node."""

import asyncio
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpu_agent.agent import SAMPLE, sampling
from gpu_agent.lease import Lease, Refused
from gpu_agent.ledger import NoLease
from gpu_agent.managed import Cause
from gpu_agent.node import Node, UnknownGpu
from gpu_agent.plant import GpuSpec, Plant
from gpu_agent.plant_layout import Call, NvmlReturn
from gpu_agent.state_file import read
from joulegate.units import Joules, MegaHertz, Seconds, Watts
from joulegate.wire import BoostRequest, SyncRequest
from tests.gpu_agent.conftest import GRACE, JITTER, Bench, ManualClock, StandingWatchdog

FREE = [None, None, None, None]


class SlowWatchdog(StandingWatchdog):
    """Confirms after `takes` seconds."""

    def __init__(self, clock: ManualClock, takes: float) -> None:
        super().__init__()
        self.takes = takes
        self._clock = clock

    def arm(self, deadline: Seconds | None, gpus: Iterable[str], hold: bool = True) -> bool:
        self._clock.advance(self.takes)
        return super().arm(deadline, gpus, hold)


def sync(
    bench: Bench,
    node: Node,
    targets: dict[str, int | None],
    lease: int | None = None,
    holder: str = "gw",
    groups: tuple[tuple[str, ...], ...] = (),
) -> Lease | Refused:
    request = SyncRequest(holder=holder, lease=lease, targets=targets, groups=groups, ttl_s=2.0)
    return node.sync(request, "test", bench.clock())


def lock(bench: Bench, node: Node, targets: dict[str, int | None]) -> Lease:
    lease = sync(bench, node, targets)
    assert isinstance(lease, Lease)
    return lease


def give_back(bench: Bench, node: Node, lease: int, holder: str = "gw") -> Lease | Refused:
    return node.sync(SyncRequest(holder=holder, lease=lease, ttl_s=0.0), "test", bench.clock())


def boost(bench: Bench, node: Node, floors: dict[str, int], seconds: float = 1.0) -> None:
    request = BoostRequest(holder="other", floors=floors, duration_s=seconds)
    node.boost(request, "test", bench.clock())


def test_a_ceiling_is_a_lock_from_the_lowest_clock_up(bench: Bench) -> None:
    lock(bench, bench.node(), {"GPU-0": 1201})
    assert (bench.gpu(0).request.low, bench.gpu(0).request.high) == (210, 1215)


def test_a_lease_that_ran_out_while_the_watchdog_was_told_locks_nothing(bench: Bench) -> None:
    """Its clocks may have been given back meanwhile: nobody would give these back."""
    slow = bench.watchdog = SlowWatchdog(bench.clock, takes=2.0)
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings() == FREE
    assert slow.deadline is None
    assert "ran out" in (node.states()[0].fault or "")
    slow.takes = 0.0
    bench.clock.advance(1.0)
    node.expire()
    lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings()[0] == 1200


def test_the_watchdog_knows_the_deadline_and_the_disk_the_names_before_the_lock(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200, "GPU-2": 900})
    assert bench.watchdog.deadline == pytest.approx(lease.expires + 0.5 * JITTER + GRACE)
    assert bench.watchdog.gpus == {"GPU-0", "GPU-2"}
    assert read(bench.path.parent).locked == {"GPU-0", "GPU-2"}
    assert read(bench.path.parent).token == lease.token == 1


def test_an_unchanged_ceiling_is_not_written_again(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    writes = bench.gpu(0).request.count
    for _ in range(20):
        bench.clock.advance(0.25)
        sync(bench, node, {"GPU-0": 1200}, lease.token)
        node.observe()
    assert bench.gpu(0).request.count == writes
    assert bench.watchdog.deadline is not None
    assert bench.watchdog.deadline > bench.clock()


def test_an_unrenewed_lease_gives_every_clock_back_after_its_jitter(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200, "GPU-1": 1200})
    due = lease.expires + 0.5 * JITTER
    bench.clock.now = Seconds(due - 0.001)
    assert node.expire() == pytest.approx(due)
    assert bench.ceilings() == [1200, 1200, None, None]
    bench.clock.now = Seconds(due)
    node.expire()
    assert bench.ceilings() == FREE
    assert bench.watchdog.deadline is None
    assert node.expirations == 1
    node.tidy()
    assert read(bench.path.parent).locked == frozenset()


def test_a_holder_that_comes_back_late_must_ask_anew_and_tokens_never_repeat(bench: Bench) -> None:
    node = bench.node()
    first = lock(bench, node, {"GPU-0": 1200})
    bench.clock.advance(2.0)
    late = sync(bench, node, {"GPU-0": 900}, first.token)
    assert isinstance(late, Refused)
    assert bench.ceilings()[0] == 1200  # its own jitter still runs, and nothing was lowered
    second = lock(bench, node, {})
    assert second.token == first.token + 1
    assert bench.ceilings() == FREE
    again = bench.node()
    again.recover()
    bench.clock.advance(10.0)
    assert lock(bench, again, {}).token == second.token + 1
    assert again.restarts == 1


def test_a_lease_that_is_given_back_is_free_at_once(bench: Bench) -> None:
    node = bench.node()
    first = lock(bench, node, {"GPU-0": 1200})
    stranger = give_back(bench, node, first.token, "other")
    assert isinstance(stranger, Refused)
    assert bench.ceilings()[0] == 1200
    assert isinstance(give_back(bench, node, first.token), Lease)
    assert bench.ceilings() == FREE
    assert bench.watchdog.deadline is None
    late = sync(bench, node, {"GPU-0": 900}, first.token)
    assert isinstance(late, Refused), "what was still on its way lowers nothing"
    bench.clock.advance(1.0)
    second = sync(bench, node, {"GPU-0": 900}, holder="other")
    assert isinstance(second, Lease)
    assert (second.token, bench.ceilings()[0]) == (first.token + 1, 900)
    bench.clock.advance(1.0)
    node.expire()
    assert (bench.ceilings()[0], node.expirations) == (900, 0)


def test_anybody_may_raise_and_only_the_holder_may_lower(bench: Bench) -> None:
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200, "GPU-1": 1200, "GPU-2": 1200})
    answer = sync(bench, node, {"GPU-0": 1500, "GPU-1": 900, "GPU-2": None, "GPU-3": 900}, holder="other")
    assert isinstance(answer, Refused)
    assert answer.holder == "gw"
    assert bench.ceilings() == [1500, 1200, None, None]


def test_a_boost_needs_no_lease_lifts_at_once_and_ends_by_itself(bench: Bench) -> None:
    node = bench.node()
    boost(bench, node, {"GPU-0": 1500})
    assert bench.ceilings() == FREE
    lease = lock(bench, node, {"GPU-0": 900})
    assert bench.ceilings()[0] == 1500
    bench.clock.advance(0.9)
    boost(bench, node, {"GPU-0": 1800}, seconds=0.5)
    assert bench.ceilings()[0] == 1800
    bench.clock.advance(0.6)
    sync(bench, node, {}, lease.token)
    assert bench.ceilings()[0] == 1800  # the boost is over, the dwell is not
    bench.clock.advance(0.5)
    sync(bench, node, {}, lease.token)
    assert bench.ceilings()[0] == 900


def test_without_a_watchdog_nothing_is_lowered_and_what_is_low_goes_up(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.watchdog.problem = "it does not answer"
    answer = sync(bench, node, {"GPU-0": 1100, "GPU-1": 900}, lease.token)
    assert isinstance(answer, Lease)  # the lease lives, the clocks do not go down
    assert bench.ceilings() == FREE
    node.observe()
    assert [state.fault for state in node.states()][:2] == ["it does not answer"] * 2
    bench.watchdog.problem = ""
    bench.clock.advance(1.0)
    sync(bench, node, {"GPU-0": 1200}, lease.token)
    assert bench.ceilings()[0] == 1200
    assert node.states()[0].fault is None


def test_a_watchdog_that_goes_away_between_two_renewals_is_noticed(bench: Bench) -> None:
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200})
    bench.watchdog.problem = "closed"
    node.tidy()
    assert bench.ceilings() == FREE


def test_when_the_disk_is_full_no_lease_is_granted_and_nothing_is_lowered(
    bench: Bench, tmp_path: Path
) -> None:
    node = bench.node()
    (tmp_path / "agent.new").mkdir()  # the file that would replace the old one cannot be made
    with pytest.raises(NoLease):
        sync(bench, node, {"GPU-0": 1200})
    assert bench.ceilings() == FREE


def test_when_the_disk_fills_up_a_live_lease_goes_on_but_no_further_gpu_is_locked(
    bench: Bench, tmp_path: Path
) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    (tmp_path / "agent.new").mkdir()
    sync(bench, node, {"GPU-0": 1200}, lease.token)
    assert bench.ceilings()[0] == 1200
    sync(bench, node, {"GPU-1": 1200}, lease.token)
    assert bench.ceilings() == FREE


def test_one_failed_write_takes_the_whole_group_up(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(2).fail(Call.LOCK, NvmlReturn.TIMEOUT)
    sync(bench, node, {f"GPU-{i}": 1200 for i in range(4)}, groups=(("GPU-0", "GPU-1"), ("GPU-2", "GPU-3")))
    assert bench.ceilings() == [1200, 1200, None, None]


def test_a_group_goes_down_together_or_waits_together(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.clock.advance(0.5)
    both: dict[str, int | None] = {"GPU-0": 900, "GPU-1": 900}
    instance = (("GPU-0", "GPU-1"),)
    sync(bench, node, both, lease.token, groups=instance)
    assert bench.ceilings()[:2] == [1200, None]
    bench.clock.advance(0.5)
    sync(bench, node, both, lease.token, groups=instance)
    assert bench.ceilings()[:2] == [900, 900]


def test_a_group_with_a_gpu_that_cannot_follow_stays_up_and_others_do_not_care(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(1).deny_writes()
    targets: dict[str, int | None] = {f"GPU-{i}": 900 for i in range(3)}
    lease = lock(bench, node, {"GPU-1": 900})
    sync(bench, node, targets, lease.token, groups=(("GPU-0", "GPU-1"),))
    assert bench.ceilings() == [None, None, 900, None]


def test_without_groups_each_gpu_has_its_own_dwell_and_a_failure_is_everybodys(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.clock.advance(0.5)
    sync(bench, node, {"GPU-0": 900, "GPU-1": 900}, lease.token)
    assert bench.ceilings()[:2] == [1200, 900]
    bench.gpu(2).fail(Call.LOCK, NvmlReturn.TIMEOUT)
    sync(bench, node, {"GPU-0": 1200, "GPU-1": 900, "GPU-2": 900}, lease.token)
    assert bench.ceilings() == FREE


def test_a_lost_gpu_does_not_stop_the_others(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(1).lose()
    lease = lock(bench, node, {"GPU-0": 1200, "GPU-3": 900})
    node.observe()
    states = node.states()
    assert bench.ceilings() == [1200, None, None, 900]
    assert [state.fault is None for state in states] == [True, False, True, True]
    sync(bench, node, {"GPU-1": 600}, lease.token)
    assert bench.ceilings() == [1200, None, None, 900]


def test_a_gpu_lost_while_locked_is_freed_as_soon_as_it_answers(bench: Bench) -> None:
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200})
    bench.gpu(0).lose()
    bench.clock.advance(3.0)
    node.expire()
    assert bench.ceilings()[0] == 1200
    assert "GPU-0" in bench.watchdog.gpus  # not disarmed: the watchdog would take over
    bench.clock.advance(0.2)
    assert node.expire() == pytest.approx(bench.clock() + 0.2)
    bench.gpu(0).heal()
    bench.clock.advance(0.2)
    node.expire()
    assert bench.ceilings() == FREE


def test_a_driver_reload_is_survived(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.plant.reload_driver(bench.clock())
    node.observe()
    assert all(state.fault is None for state in node.states())
    bench.clock.advance(2.1)
    lease = lock(bench, node, {"GPU-0": 1100})
    assert lease.token == 2
    assert bench.ceilings()[0] == 1110


def test_a_new_plant_of_a_restarted_emulator_is_taken_up(bench: Bench) -> None:
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200})
    specs = [GpuSpec(uuid=f"GPU-{i}", clocks=bench.gpu(0).clocks, settle=Seconds(0.01)) for i in range(4)]
    bench.plant = Plant.create(bench.path, specs)
    node.observe()
    bench.clock.advance(2.5)
    lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings()[0] == 1200


def test_a_write_into_a_broken_library_fails_up_and_recovers(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.plant.break_handles()
    bench.clock.advance(1.0)
    sync(bench, node, {"GPU-0": 1100}, lease.token)
    bench.clock.advance(1.0)
    node.expire()
    assert bench.ceilings() == FREE


def test_no_permission_means_watch_only_and_nothing_is_tried_again(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(0).deny_writes()
    lease = lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings() == FREE
    assert node.infos()[0].writable is False
    assert "error 4" in (node.infos()[0].why_not_writable or "")
    bench.gpu(0).heal()
    sync(bench, node, {"GPU-0": 1200}, lease.token)
    assert bench.gpu(0).request.count == 0


def test_a_clock_above_its_ceiling_is_told_again_then_given_up(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(0).stick(MegaHertz(1980))
    lease = lock(bench, node, {"GPU-0": 1200})
    writes = bench.gpu(0).request.count
    bench.clock.advance(0.2)
    node.observe()
    assert bench.gpu(0).request.count == writes + 1
    assert bench.gpu(0).request.high == 1200
    bench.clock.advance(0.2)
    node.observe()
    assert bench.gpu(0).request.high is None
    assert (node.states()[0].fault or "").startswith("safe")
    bench.gpu(0).heal()
    bench.clock.advance(5.0)
    lease = lock(bench, node, {"GPU-0": 1200})
    assert bench.gpu(0).request.high is None
    bench.clock.advance(31.0)
    node.observe()
    lease = lock(bench, node, {"GPU-0": 1200})
    assert bench.gpu(0).request.high == 1200
    assert lease.token == 3


def test_a_throttling_gpu_may_go_up_but_not_down(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    bench.gpu(0).throttle(MegaHertz(900), reasons=0x20)
    bench.clock.advance(1.5)
    node.observe()
    assert node.states()[0].reasons == ("thermal",)
    sync(bench, node, {"GPU-0": 1000}, lease.token)
    assert bench.gpu(0).request.high == 1200
    sync(bench, node, {"GPU-0": 1500}, lease.token)
    assert bench.gpu(0).request.high == 1500


def test_a_foreign_process_makes_a_gpu_watch_only_and_frees_it(bench: Bench) -> None:
    own = frozenset({Path(f"/proc/{os.getpid()}/comm").read_text().strip()})
    node = bench.node(own_processes=own)
    bench.gpu(0).processes = [os.getpid()]
    node.observe()
    lease = lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings()[0] == 1200
    bench.gpu(0).processes = [os.getpid(), 1]
    node.observe()
    assert bench.ceilings()[0] is None
    assert (node.infos()[0].why_not_writable or "").startswith("foreign_process: 1")
    bench.clock.advance(1.5)
    sync(bench, node, {"GPU-0": 1200}, lease.token)
    assert bench.ceilings()[0] is None


def test_an_agent_that_only_watches_writes_nothing_and_says_so(bench: Bench) -> None:
    node = bench.node(allow_writes=False)
    node.recover()
    lock(bench, node, {"GPU-0": 1200})
    boost(bench, node, {"GPU-0": 1500})
    bench.clock.advance(5.0)
    node.expire()
    node.shut("end")
    assert [gpu.request.count for gpu in bench.plant.gpus] == [0, 0, 0, 0]
    assert "only watches" in (node.infos()[0].why_not_writable or "")
    assert bench.watchdog.arms == 0


def test_a_restart_finds_left_over_locks_and_frees_them(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    lock(bench, bench.node(), {"GPU-0": 1200, "GPU-2": 900})
    bench.gpu(3).lock(MegaHertz(210), MegaHertz(600), bench.clock())  # somebody else's
    again = bench.node()
    again.recover()
    assert bench.ceilings() == [None, None, None, 600]
    assert [r.__dict__["gpus"] for r in caplog.records if "earlier run" in r.message] == [["GPU-0", "GPU-2"]]
    assert read(bench.path.parent).locked == frozenset()


def test_a_site_lock_is_the_state_to_return_to(bench: Bench) -> None:
    node = bench.node(site_lock=1500)
    node.recover()
    assert bench.ceilings() == [1500] * 4
    bench.clock.advance(1.0)
    lock(bench, node, {"GPU-0": 1200, "GPU-1": 1900})
    assert bench.ceilings() == [1200, 1500, 1500, 1500]
    bench.clock.advance(3.0)
    node.expire()
    assert bench.ceilings() == [1500] * 4
    assert bench.watchdog.deadline is None


def test_releasing_frees_the_clocks_and_the_driver_until_resumed(bench: Bench) -> None:
    node = bench.node()
    lock(bench, node, {"GPU-0": 1200})
    assert node.release(False, Cause("test", "upgrade")) is True
    assert bench.ceilings() == FREE
    assert bench.watchdog.holds_driver is False
    lock(bench, node, {"GPU-0": 1200})
    node.observe()
    assert bench.ceilings() == FREE
    assert (node.states()[0].fault or "").startswith("released")
    bench.plant.reload_driver(bench.clock())
    assert node.release(True, Cause("test", "done")) is False
    bench.clock.advance(3.0)
    lock(bench, node, {"GPU-0": 1200})
    assert bench.ceilings()[0] == 1200


def test_stopping_frees_everything_and_refuses_what_comes_after(bench: Bench) -> None:
    node = bench.node()
    lease = lock(bench, node, {"GPU-0": 1200})
    node.shut("SIGTERM")
    assert bench.ceilings() == FREE
    assert bench.watchdog.deadline is None
    with pytest.raises(NoLease):
        sync(bench, node, {"GPU-0": 1200}, lease.token)
    assert bench.ceilings() == FREE


def test_unknown_gpus_are_refused_and_change_nothing(bench: Bench) -> None:
    node = bench.node()
    with pytest.raises(UnknownGpu, match="GPU-9"):
        sync(bench, node, {"GPU-0": 1200, "GPU-9": 1200})
    assert bench.ceilings() == FREE
    assert node.lease is None


def used_and_truth(bench: Bench, look_every: float, change_every: float) -> tuple[str, float, float]:
    """Ten minutes of load that changes now and then: (source, joules by the agent, by the plant)."""
    node, gpu, rng = bench.node(), bench.gpu(0), random.Random(3)
    gpu.publish(bench.clock(), Joules(0.0), Watts(300.0), MegaHertz(1980))
    node.observe()
    start, began = node.states()[0].energy_j, gpu.true_energy_at(bench.clock())
    end, change, look = bench.clock() + 600.0, bench.clock(), bench.clock()
    while bench.clock() < end:
        bench.clock.now = Seconds(min(change, look))
        if change <= look:
            watts = Watts(rng.uniform(70.0, 700.0) if rng.random() < 0.5 else 300.0)
            gpu.publish(bench.clock(), gpu.true_energy_at(bench.clock()), watts, MegaHertz(1980))
            change = Seconds(change + rng.uniform(0.0, 2.0 * change_every))
        else:
            node.observe()
            look = Seconds(look + look_every)
    node.observe()
    state = node.states()[0]
    truth = gpu.true_energy_at(bench.clock()) - began
    return state.energy_source, state.energy_j - start, truth


@pytest.mark.parametrize("change_every", [0.03, 0.5, 10.0])
def test_counted_energy_is_the_plants_to_half_a_percent(bench: Bench, change_every: float) -> None:
    source, used, truth = used_and_truth(bench, look_every=0.25, change_every=change_every)
    assert source == "counter"
    assert used == pytest.approx(truth, rel=0.005)


@pytest.mark.parametrize("change_every", [0.03, 0.5, 10.0])
def test_without_a_counter_the_agents_own_sampling_keeps_it_to_half_a_percent(
    bench: Bench, change_every: float
) -> None:
    bench.gpu(0).fail(Call.ENERGY, NvmlReturn.NOT_SUPPORTED)
    source, used, truth = used_and_truth(bench, look_every=SAMPLE, change_every=change_every)
    assert source == "integrated"
    assert used == pytest.approx(truth, rel=0.005)


@pytest.mark.parametrize("counts", [True, False], ids=["counter", "integrated"])
def test_power_is_sampled_with_nobody_listening_only_where_no_counter_counts(
    bench: Bench, counts: bool
) -> None:
    if not counts:
        bench.gpu(0).fail(Call.ENERGY, NvmlReturn.NOT_SUPPORTED)
    node = bench.node()

    async def seen() -> list[float]:
        stop = asyncio.Event()
        task = asyncio.create_task(sampling(node, stop))
        times = []
        for _ in range(3):
            await asyncio.sleep(3 * SAMPLE)
            times.append(node.states()[0].observed_at_s)
            bench.clock.advance(1.0)
        stop.set()
        await task
        return times

    times = asyncio.run(seen())
    assert len(set(times)) == (1 if counts else 3)


def test_a_counter_that_is_reset_or_wraps_loses_less_than_half_a_percent(bench: Bench) -> None:
    node, gpu = bench.node(), bench.gpu(0)
    gpu.publish(bench.clock(), Joules(5e6), Watts(400.0), MegaHertz(1980))
    node.observe()
    start, began = node.states()[0].energy_j, gpu.true_energy_at(bench.clock())
    for tick in range(2400):
        bench.clock.advance(0.25)
        if tick % 600 == 300:
            gpu.zero_counter(bench.clock())
        node.observe()
    assert node.states()[0].energy_j - start == pytest.approx(
        gpu.true_energy_at(bench.clock()) - began, rel=0.005
    )
