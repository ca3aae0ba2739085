"""Pure: a sequence in an engine, and what happened to some of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from typing import NamedTuple


@dataclass(slots=True, eq=False)
class Job:
    """One sequence. The engine fills the times (seconds) in; NaN until they happen."""

    key: int
    prompt_tokens: int
    output_tokens: int  # how many it will generate, at least 1
    arrived_at: float = nan
    cached: int = 0  # prompt tokens that are in the KV cache before it comes
    admitted_at: float = nan  # first taken into the KV cache
    first_token_at: float = nan
    finished_at: float = nan
    preemptions: int = 0
    admission: int = -1  # rank of the admission that it runs under; -1: not running
    to_prefill: int = 0  # prompt tokens of this admission: the prompt, plus what was generated before
    prefilled: int = 0  # of those, already in the KV cache
    last_step: int = -1  # number of the step that ends it; -1: not decoding yet, or pre-empted


class Events(NamedTuple):
    """What happened since the last call. A job may stand in several of them."""

    first_tokens: Sequence[Job] = ()
    finished: Sequence[Job] = ()
    preempted: Sequence[Job] = ()


NOTHING = Events()
