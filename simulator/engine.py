"""Pure: the engine of engine-profile/1 in simulated time: continuous batching, its clock and its energy.

Use, in simulated time:

    engine = Engine(EngineCosts(profile), clock=1980)   # simulator.costs; engines of a profile share one
    engine.submit(Job(key, prompt_tokens, output_tokens), at)   # simulator.jobs; `at` may lie ahead
    engine.set_clock(1410, now)               # acts on the first iteration that starts clock_switch_s later
    events = engine.advance(until)            # what happened up to and including `until`
    for job in events.finished: job.first_token_at, job.finished_at, job.preemptions
    engine.running, engine.waiting, engine.decoding, engine.context_tokens, engine.kv_tokens
    engine.energy                             # joules of the whole instance up to `engine.now`, idle included
    engine.generated(job), engine.cancel(job)

and one iteration at a time (the live emulator):
    ends = engine.begin(now)                  # None: nothing to do
    jobs = engine.producers()                 # whose tokens appear at `ends`
    events = engine.complete()                # `engine.now` is `ends`
    engine.stand_still(until)                 # asleep: idle power, whatever waits

Theory of operation. Iterations follow each other without a gap while there is work; one in flight when
`advance` returns is completed by the next call, and its tokens are not visible before its end. While no
prompt can be taken in, the batch B is constant and the context K grows by B a step, so that n steps are two
arithmetic series (`simulator.costs`); the stretch ends at the next completion, arrival, clock change, full KV
cache or `until`. A sequence that decodes is a heap entry (number of the step that ends it), so a step costs
nothing per sequence.

Where the format leaves a choice: a sequence holds prompt + generated tokens of KV; a prompt holds its whole
length from admission on; a decode step "would exceed" capacity when held tokens + B do; a sequence that
finishes or is pre-empted gives its tokens back at once; an arrival just as an iteration starts is in it.
"""

from collections import deque
from heapq import heapify, heappop, heappush
from math import inf

from simulator.costs import steps_started, steps_within
from simulator.engine_state import EngineState
from simulator.jobs import NOTHING, Events, Job


class Engine(EngineState):
    """One instance. All times are seconds on the caller's clock."""

    def submit(self, job: Job, at: float) -> None:
        """Put a job in the queue. Raises ValueError if `at` lies before an earlier submission."""
        if self._inbox and at < self._inbox[-1][0]:
            raise ValueError(f"jobs must be submitted in order of time: {at} < {self._inbox[-1][0]}")
        self._inbox.append((at, job))

    def cancel(self, job: Job) -> None:
        """Forget a job. One that runs leaves with the iteration in flight, without its tokens."""
        if job.admission >= 0:
            if self._flight is None:
                self._drop(job)
            elif job not in self._cancelled:
                self._cancelled.append(job)
        elif job in self._waiting:
            self._waiting.remove(job)
        else:
            self._inbox = deque(entry for entry in self._inbox if entry[1] is not job)

    def set_clock(self, clock: float, now: float) -> None:
        """Command a clock: it acts on the first iteration that starts at least clock_switch_s later."""
        self._clocks.append((now + self._switch, clock))

    def apply_clock(self, clock: float, cap_watts: float = inf) -> None:
        """Set the clock of the next iteration (for callers that model the switch themselves).

        `cap_watts`: the power limit that is set on each board.
        """
        self._at_clock = self._costs.at(clock, cap_watts)

    def advance(self, until: float) -> Events:
        """Run to `until`. Iterations that start before it are begun; those that end by it are completed."""
        if self._flight is not None:
            if self._flight[0] > until:
                self.now = until
                return NOTHING
            self._complete()
        while self._time < until and self._flight is None:
            self._take_in()
            if not self._running and not self._waiting:
                self._idle(min(until, self._next_change()))
                continue
            prefill = self._can_prefill()
            single = prefill or self._noise is not None or not self._stretch(until)
            if single and self._launch(prefill) <= until:
                self._complete()
        self.now = until
        return self._news()

    def quiet_until(self) -> float:
        """Before when nothing can be seen from outside: no first token, no completion (a lower bound).

        Holds until the next call that changes the engine. inf: idle, with nothing in its queue.
        """
        ends = self._ends
        if self._flight is None:
            return self._time if self._running or self._waiting or self._inbox else inf
        over, clock, batch = self._flight[0], self._at_clock, len(ends)
        if self._chunks or self._inbox or self._waiting or not ends or self._noise is not None:
            return over
        steps = min(ends[0][0] - self._step - 1, (self._capacity - self._kv) // batch - 1)
        if steps <= 0:
            return over
        first = clock.t0[batch] + clock.m1 * (self._context + batch)
        until = over + steps * (first + 0.5 * clock.m1 * batch * (steps - 1))
        return max(over, min(until, self._clocks[0][0])) if self._clocks else until

    def begin(self, now: float) -> float | None:
        """Start the next iteration, at `now` if the engine has been idle; returns its end. None: no work."""
        if self._time < now and not self._running and not self._waiting:
            arrival = self._inbox[0][0] if self._inbox else inf
            self._idle(max(self._time, min(now, arrival)))
        self._take_in()
        if not self._running and not self._waiting:
            return None
        self.now = self._time
        return self._launch(self._can_prefill())

    def stand_still(self, until: float) -> None:
        """Draw idle power up to `until`, whatever waits: asleep. No iteration may be in flight."""
        assert self._flight is None, "an iteration is in flight"
        self._idle(max(self._time, until))
        self.now = self._time

    def producers(self) -> list[Job]:
        """Jobs whose next token appears when the iteration in flight ends."""
        done = [job for job, tokens in self._chunks if job.prefilled + tokens == job.to_prefill]
        return [entry[2] for entry in self._ends] + done

    def complete(self) -> Events:
        """End the iteration in flight; `now` becomes its end."""
        self._complete()
        self.now = self._time
        return self._news()

    # -- one iteration

    def _news(self) -> Events:
        if not (self._first or self._finished or self._preempted):
            return NOTHING
        events = Events(self._first, self._finished, self._preempted)
        self._first, self._finished, self._preempted = [], [], []
        return events

    def _take_in(self) -> None:
        """Arrivals and clock commands up to now."""
        while self._inbox and self._inbox[0][0] <= self._time:
            self._waiting.append(self._inbox.popleft()[1])
        while self._clocks and self._clocks[0][0] <= self._time:
            self.apply_clock(self._clocks.popleft()[1])

    def _next_change(self) -> float:
        arrival = self._inbox[0][0] if self._inbox else inf
        return min(arrival, self._clocks[0][0]) if self._clocks else arrival

    def _idle(self, until: float) -> None:
        self._energy += (until - self._time) * self._costs.idle_watts
        self._time = until

    def _can_prefill(self) -> bool:
        """Whether the next iteration takes prompt tokens, once decodes have made themselves room."""
        if self._kv + len(self._ends) > self._capacity and self._ends:
            self._make_room()
        if len(self._ends) >= self._max_tokens:
            return False
        return self._partial is not None or (bool(self._waiting) and self._admissible(self._waiting[0]))

    def _admissible(self, job: Job) -> bool:
        if not self._running:
            return True
        tokens = job.to_prefill or job.prompt_tokens
        return len(self._running) < self._max_seqs and self._kv + tokens <= self._admit_below

    def _make_room(self) -> None:
        """Pre-empt the most recently admitted until one decode step fits."""
        while self._ends and self._kv + len(self._ends) > self._capacity:
            job = self._running[next(reversed(self._running))]
            generated = self.generated(job)
            self._drop(job)
            job.to_prefill, job.prefilled = job.prompt_tokens + generated, 0
            job.preemptions += 1
            self._waiting.appendleft(job)
            self._preempted.append(job)

    def _drop(self, job: Job) -> None:
        """Take a running job out and give its KV back."""
        del self._running[job.admission]
        if job.last_step < 0:  # its prompt is not through
            self._kv -= job.to_prefill
            if job is self._partial:
                self._partial = None
        else:
            held = job.prompt_tokens + self.generated(job)
            self._context -= held
            self._kv -= held
            self._ends = [entry for entry in self._ends if entry[2] is not job]
            heapify(self._ends)
        job.admission = job.last_step = -1

    def _launch(self, prefill: bool) -> float:
        """Put one iteration in flight: every decode, then prompt chunks if any fits. Returns its end."""
        if prefill:
            tokens, attention = self._take_chunks()
            seconds, joules, mhz = self._at_clock.mixed(len(self._ends), self._context, tokens, attention)
        else:
            seconds, joules, mhz = self._at_clock.decode(len(self._ends), self._context)
        if self._noise is not None:
            factor = self._noise()
            seconds, joules = seconds * factor, joules * factor
        end = self._time + seconds
        self._flight = (end, joules)
        self._flight_clock = mhz
        return end

    def _take_chunks(self) -> tuple[int, float]:
        """Fill the token budget from the queue; returns (prompt tokens, attention work)."""
        budget = left = self._max_tokens - len(self._ends)
        attention = 0.0
        job = self._partial
        while left > 0:
            if job is None:
                if not self._waiting or not self._admissible(self._waiting[0]):
                    break
                job = self._admit()
            done = job.prefilled
            tokens = min(left, job.to_prefill - done)
            attention += tokens * (done + 0.5 * tokens)
            left -= tokens
            self._chunks.append((job, tokens))
            self._partial = job if done + tokens < job.to_prefill else None
            job = None
        return budget - left, attention

    def _admit(self) -> Job:
        job = self._waiting.popleft()
        if not job.to_prefill:
            job.to_prefill, job.admitted_at = job.prompt_tokens, self._time
        job.admission = self._admissions
        self._admissions += 1
        self._running[job.admission] = job
        self._kv += job.to_prefill
        return job

    def _complete(self) -> None:
        """End the iteration in flight: tokens of the decodes, prompts that are through, completions."""
        assert self._flight is not None, "no iteration in flight"
        self._time, joules = self._flight
        self._flight = None
        self._energy += joules
        if self._cancelled:
            self._drop_cancelled()
        self._count_steps(1)
        for job, tokens in self._chunks:
            job.prefilled += tokens
            if job.prefilled == job.to_prefill:
                self._start_decoding(job)
        self._chunks.clear()

    def _drop_cancelled(self) -> None:
        self._chunks = [(job, tokens) for job, tokens in self._chunks if job not in self._cancelled]
        for job in self._cancelled:
            self._drop(job)
        self._cancelled.clear()

    def _count_steps(self, steps: int) -> None:
        """Every decoding sequence has made `steps` tokens; those at their end leave."""
        ends = self._ends
        grown = steps * len(ends)
        self._step = step = self._step + steps
        self._context += grown
        self._kv += grown
        while ends and ends[0][0] <= step:
            job = heappop(ends)[2]
            held = job.prompt_tokens + job.output_tokens
            self._context -= held
            self._kv -= held
            self._finish(job)

    def _start_decoding(self, job: Job) -> None:
        """The prompt is through: its iteration gives one token."""
        generated = job.to_prefill - job.prompt_tokens + 1
        if generated == 1:
            job.first_token_at = self._time
            self._first.append(job)
        if generated == job.output_tokens:
            self._kv -= job.to_prefill
            self._finish(job)
            return
        job.last_step = self._step + job.output_tokens - generated
        heappush(self._ends, (job.last_step, job.admission, job))
        self._context += job.to_prefill + 1
        self._kv += 1

    def _finish(self, job: Job) -> None:
        del self._running[job.admission]
        job.admission = -1
        job.to_prefill = 0
        job.finished_at = self._time
        self._finished.append(job)

    # -- many iterations

    def _stretch(self, until: float) -> bool:
        """Run decode-only iterations that end by `until` in closed form. False: not even one could be run.

        Iteration j of the stretch takes t + j*growth seconds, t and growth from the costs.
        """
        ends, costs = self._ends, self._at_clock
        b, k = len(ends), self._context
        steps = min(ends[0][0] - self._step, (self._capacity - self._kv) // b)
        if not costs.linear[b] and not costs.is_linear(b, k, k + steps * b):
            return False
        first, growth = costs.t0[b] + costs.m1 * k, costs.m1 * b
        change = self._next_change()
        end = self._time + steps * (first + 0.5 * growth * (steps - 1))
        if end > until:
            steps = steps_within(first, growth, until - self._time)
        if end > change:
            steps = min(steps, steps_started(first, growth, change - self._time))
        if steps == 0:
            return False
        pairs = 0.5 * steps * (steps - 1)
        read = steps * k + pairs * b
        self._time += steps * costs.t0[b] + costs.m1 * read
        self._energy += steps * costs.e0[b] + costs.e1 * read
        self._count_steps(steps)
        return True
