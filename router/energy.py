"""Pure: joules of an instance shared out to the requests it worked on.

Measured is what the GPUs' counters say; a request's joules are *attributed*, and called so. In every interval
between two readings each request did some work: prompt tokens that were prefilled, output tokens that were
decoded. The interval's joules are shared in proportion to what that work costs by the model,

    decode token   P(B) t(B) / B
    prompt tokens  P(B, n) t(B, n) - P(B) t(B)

so nothing is lost: requests and idle time together get exactly what the counter gave. An interval in which
nothing came out belongs to the prompts the engine was given, if there are any; else it is idle.
"""

from dataclasses import dataclass, field

from joulegate.domain import Batch, EngineModel
from joulegate.units import Joules, MegaHertz, Seconds

PROMPT_SHARE = 0.1  # of a decode token, for a prompt token of an engine without a model


@dataclass(slots=True, eq=False)
class Share:
    """One request's part. `joules` grows with every reading until the one after it is closed."""

    waiting_tokens: float = 0.0  # of a prompt whose first token has not come
    joules: float = 0.0
    prompt_tokens: float = 0.0  # prefilled in the present interval
    output_tokens: float = 0.0  # decoded in it
    closed: bool = False


@dataclass(slots=True, eq=False)
class EnergyBook:
    """The shares of one instance's requests in the present interval."""

    open: dict[str, Share] = field(default_factory=dict)  # by flight
    idle_joules: float = 0.0
    attributed_joules: float = 0.0
    watts: float | None = None  # at the last reading; None: nobody reads the counters now
    read_at: Seconds = Seconds(0.0)

    def share(self, flight: str) -> Share:
        found = self.open.get(flight)
        if found is None:
            found = self.open[flight] = Share()
        return found

    def sent(self, flight: str, prompt_tokens: float) -> None:
        self.share(flight).waiting_tokens = prompt_tokens

    def worked(self, flight: str, prompt_tokens: float, output_tokens: float) -> None:
        """Its prompt was read (0: not now), and so many tokens came out."""
        share = self.open.get(flight) or self.share(flight)
        if prompt_tokens:
            share.prompt_tokens += prompt_tokens
            share.waiting_tokens = 0.0
        share.output_tokens += output_tokens

    def close(self, flight: str) -> None:
        """No more work comes; its last joules do, with the next reading."""
        if (found := self.open.get(flight)) is not None:
            found.closed = True

    def forget_closed(self) -> list[str]:
        """Drop the requests that ended: no reading will come for them. Their names."""
        gone = [name for name, share in self.open.items() if share.closed]
        for name in gone:
            del self.open[name]
        return gone

    def so_far(
        self, flight: str, model: EngineModel | None, batch: Batch, clock: MegaHertz | None, now: Seconds
    ) -> float | None:
        """Joules of a request up to now: settled, and its part of what was drawn since the last reading.

        Costs a look at every request of the instance, so it is for who asks. None: nobody meters it.
        """
        share = self.open.get(flight)
        if share is None or self.watts is None:
            return None
        price = _Price(model, batch, clock)
        works = sum(map(price.of, self.open.values()))
        part = price.of(share) / works if works > 0.0 else 0.0
        return share.joules + part * self.watts * max(0.0, now - self.read_at)

    def settle(
        self, joules: Joules, model: EngineModel | None, batch: Batch, clock: MegaHertz | None
    ) -> list[tuple[str, Share, float]]:
        """Share out what the counter gave since the last reading: (flight, its share, joules just added).

        Returns every request that got some, and drops those that are closed.
        """
        price = _Price(model, batch, clock)
        weights = [(name, share, price.of(share)) for name, share in self.open.items()]
        if not any(weight for _, _, weight in weights):
            weights = [(name, share, share.waiting_tokens) for name, share, _ in weights]
        total = sum(weight for _, _, weight in weights)
        settled: list[tuple[str, Share, float]] = []
        if total <= 0.0:
            self.idle_joules += joules
        else:
            self.attributed_joules += joules
        for name, share, weight in weights:
            part = joules * weight / total if total > 0.0 else 0.0
            share.joules += part
            share.prompt_tokens = share.output_tokens = 0.0
            if part or share.closed:
                settled.append((name, share, part))
            if share.closed:
                del self.open[name]
        return settled


class _Price:
    """What tokens of one interval cost by the model: joules, up to a common factor."""

    def __init__(self, model: EngineModel | None, batch: Batch, clock: MegaHertz | None) -> None:
        self._model = model
        if model is None:
            self._token, self._prompt_token = 1.0, PROMPT_SHARE
            return
        self._clock = clock if clock is not None else model.clocks[-1]
        self._decode = Batch(max(1, batch.decoding), batch.context_tokens)
        self._step = self._energy(model, self._decode)
        self._token = self._step / self._decode.decoding

    def of(self, share: Share) -> float:
        work = share.output_tokens * self._token
        if not share.prompt_tokens:
            return work
        if self._model is None:
            return work + share.prompt_tokens * self._prompt_token
        n, decode = int(share.prompt_tokens), self._decode
        mixed = Batch(decode.decoding, decode.context_tokens, n, 0.5 * n * n)
        return work + max(0.0, self._energy(self._model, mixed) - self._step)

    def _energy(self, model: EngineModel, batch: Batch) -> float:
        return model.watts(batch, self._clock) * model.iteration_time(batch, self._clock)
