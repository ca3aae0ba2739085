"""Pure: a sequence in an engine, and what happened to some of them."""

from dataclasses import dataclass, field
from math import nan


@dataclass(slots=True, eq=False)
class Job:
    """One sequence. The engine fills the times (seconds) in; NaN until they happen."""

    key: int
    prompt_tokens: int
    output_tokens: int  # how many it will generate, at least 1
    admitted_at: float = nan  # first taken into the KV cache
    first_token_at: float = nan
    finished_at: float = nan
    preemptions: int = 0
    admission: int = -1  # rank of the admission that it runs under; -1: not running
    to_prefill: int = 0  # prompt tokens of this admission: the prompt, plus what was generated before
    prefilled: int = 0  # of those, already in the KV cache
    last_step: int = -1  # number of the step that ends it; -1: not decoding


@dataclass(frozen=True, slots=True)
class Events:
    """What happened since the last call. A job may stand in several lists."""

    first_tokens: list[Job] = field(default_factory=list)
    finished: list[Job] = field(default_factory=list)
    preempted: list[Job] = field(default_factory=list)
