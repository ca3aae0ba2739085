"""Pure: what a simulated engine holds, and what callers see of it. `simulator.engine` says how it moves."""

from collections import deque
from collections.abc import Callable

from joulegate.units import Joules
from simulator.costs import ClockCosts, EngineCosts
from simulator.jobs import Job

KV_ADMISSION = 0.97  # share of the KV cache that admission may fill (engine-profile/1)


class EngineState:
    """One instance between two calls. All times are seconds on the caller's clock, which starts at `now`."""

    def __init__(
        self,
        costs: EngineCosts,
        clock: float,
        now: float = 0.0,
        noise: Callable[[], float] | None = None,
    ) -> None:
        """`noise` gives a factor on the time of every iteration (and so its energy); None: exact."""
        limits = costs.profile.engine
        self._costs: EngineCosts = costs
        self._at_clock: ClockCosts = costs.at(clock)
        self._noise = noise
        self._max_seqs, self._max_tokens = limits.max_num_seqs, limits.max_num_batched_tokens
        self._capacity, self._admit_below = (
            limits.kv_capacity_tokens,
            KV_ADMISSION * limits.kv_capacity_tokens,
        )
        self._switch = costs.profile.actuation.clock_switch_s
        self._clocks: deque[tuple[float, float]] = deque()  # (acts from, MHz)
        self._inbox: deque[tuple[float, Job]] = deque()  # not seen by an iteration yet
        self._waiting: deque[Job] = deque()
        self._running: dict[int, Job] = {}  # by admission, oldest first
        self._ends: list[tuple[int, int, Job]] = []  # heap of (last step, admission, job): those that decode
        self._partial: Job | None = None  # a prompt that is in the KV cache in part
        self._admissions = 0
        self._step = 0  # iterations completed
        self._context = 0  # K
        self._kv = 0
        self._time = now  # end of the last completed iteration, or how far the engine has idled
        self._energy = 0.0  # up to _time
        self._flight: tuple[float, float] | None = None  # (ends, joules) of the iteration in flight
        self._flight_clock = clock  # MHz of the latest iteration
        self._chunks: list[tuple[Job, int]] = []  # its prompt tokens
        self._cancelled: list[Job] = []  # to be dropped when it ends
        self._first: list[Job] = []  # events since the last call
        self._finished: list[Job] = []
        self._preempted: list[Job] = []
        self.now = now

    @property
    def clock(self) -> float:
        """MHz that iterations starting now are told to run at."""
        return self._at_clock.clock

    @property
    def board_clock(self) -> float:
        """MHz of the iteration in flight; below `clock` when the board is at its power limit."""
        return self._flight_clock

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._inbox)

    @property
    def queued(self) -> int:
        """Of those waiting, the ones an iteration has started without."""
        return len(self._waiting)

    @property
    def step(self) -> int:
        """Iterations completed."""
        return self._step

    @property
    def decoding(self) -> int:
        return len(self._ends)

    @property
    def context_tokens(self) -> int:
        """K: contexts that the next iteration reads."""
        return self._context

    @property
    def kv_tokens(self) -> int:
        """Tokens that hold KV, prompts being prefilled counted whole."""
        return self._kv

    @property
    def watts(self) -> float:
        """Of the whole instance, now."""
        if self._flight is None:
            return self._costs.idle_watts
        return self._flight[1] / (self._flight[0] - self._time)

    @property
    def energy(self) -> Joules:
        """Of the whole instance, from the start to `now`."""
        return Joules(self._energy + (self.now - self._time) * self.watts)

    def generated(self, job: Job) -> int:
        """Output tokens of `job` so far."""
        if job.last_step >= 0:
            return job.output_tokens - (job.last_step - self._step)
        return max(0, job.to_prefill - job.prompt_tokens)
