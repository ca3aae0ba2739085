"""Shell: the part of a trace that is replayed, how fast, and how long its requests may be."""

from dataclasses import dataclass

from joulegate.arrivals import Arrival


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a trace, how fast, and how long its requests may be."""

    start: float = 0.0  # seconds into the trace
    duration: float | None = None  # seconds of the trace
    limit: int | None = None  # requests
    speed: float = 1.0
    clip_input: int | None = None  # tokens
    clip_output: int | None = None

    def cut(self, arrivals: tuple[Arrival, ...]) -> tuple[Arrival, ...]:
        """Arrivals as they are to be sent: times from the start of the window, already sped up."""
        end = float("inf") if self.duration is None else self.start + self.duration
        inside = [arrival for arrival in arrivals if self.start <= arrival.at < end]
        return tuple(
            Arrival(
                (arrival.at - self.start) / self.speed,
                min(arrival.input_tokens, self.clip_input or arrival.input_tokens),
                min(arrival.output_tokens, self.clip_output or arrival.output_tokens),
                arrival.tenant,
            )
            for arrival in inside[: self.limit]
        )
