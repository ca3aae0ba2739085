"""Pure: the word somebody meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The closest of `words` by matching characters, or None when nothing is close."""
    known = {candidate.lower(): candidate for candidate in words}
    matches = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return known[matches[0]] if matches else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """`did you mean 'tpot_ms'?`, or nothing."""
    match = nearest(word, words)
    return f"did you mean {match!r}?" if match else ""
