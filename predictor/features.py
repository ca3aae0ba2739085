"""Pure: what a prompt shows about the length of its answer, as numbers and as keys; text is read, never kept.

Only the ends of the last user message are read: HEAD characters from its start and TAIL from its end.
"""

from collections.abc import Mapping
from itertools import pairwise
from math import log1p
from zlib import crc32

from joulegate.domain import LengthQuery

HEAD = 700  # characters of the message's start that are looked at
TAIL = 300  # and of its end
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789") | frozenset(range(128, 256))
WORDS = bytes(c + 32 if 65 <= c <= 90 else c if c in LETTERS else 32 for c in range(256))  # the rest is space
FIGURES = bytes(48 if 48 <= c <= 57 else WORDS[c] for c in range(256))  # a digit is 0
SYMBOLS = b"{(;=<_"
ASCII = bytes(range(128))
ASKING, CLOSING = 20, 10  # first and last words, among which a request usually says what it wants

GROUPS: Mapping[str, str] = {
    "who": "who whom whose when where which",
    "what": "what whats",
    "how": "how",
    "several": "are some various several different few",
    "discuss": "why explain describe discuss analyze analyse analysis compare contrast comparison difference"
    " differences evaluate implications impact effects effect arguments ethical moral origins"
    " history significance importance critique justify elaborate relationship perspective argue"
    " examine explore explaining discussing influence",
    "write": "write create generate compose draft make build design develop produce craft prepare"
    " construct invent tell",
    "list": "list give suggest provide recommend tips ideas ways examples activities suggestions"
    " strategies reasons benefits advantages disadvantages pros cons methods techniques"
    " recommendations factors components features things aspects facts resources books movies"
    " songs top best",
    "choose": "answer choose option options select classify classification category categories categorize"
    " pick decide indicate determine identify whether true false yes no either sentiment positive"
    " negative neutral label labels correct following similar belongs belong entailment statement"
    " assess choices",
    "fact": "year date capital author actor actress director president singer winner inventor founder"
    " element atomic color colour population genre species digit born located nickname largest"
    " smallest highest tallest longest oldest played called name named closest first last",
    "phrase": "motto slogan title titles headline caption acronym emoji emojis tagline hashtag hashtags"
    " tweet quote riddle joke pun subject phrase synonym synonyms antonym antonyms bio compliment"
    " word expression term adjective adjectives keyword keywords answer",
    "brief": "brief briefly short shorter shortest concise concisely single only sentence just one simple"
    " simply",
    "long": "essay story stories article blog script narrative scene chapter novel speech report syllabus"
    " curriculum itinerary proposal plan guide tutorial guidelines manual review dialogue"
    " screenplay episode podcast lesson lessons course courses biography newsletter documentation"
    " listing playlist outline post presentation policy thesis paper schedule program strategy",
    "detail": "detailed detail details comprehensive long thorough depth extensive complete full including"
    " include engaging informative elaborate multiple",
    "letter": "poem letter email song lyrics haiku message verse rap limerick sonnet invitation paragraph"
    " paragraphs",
    "code": "python function code program sql html javascript java class algorithm api c css react bash"
    " query regex implement method array string integer server script database typescript example"
    " solution",
    "maths": "calculate solve equation probability many much sum number numbers value prove total compute"
    " average percent cost price divided times subtract plus equals",
    "rewrite": "rewrite edit paraphrase translate translation convert fix grammar rephrase transform replace"
    " change extract fill spelling correction correct reword simplify english french spanish"
    " german chinese capitalize sort repeat complete proofread arrange reorder rearrange modify"
    " swap revise polish",
    "summary": "summarize summarise summary tldr passage text conversation document paragraph excerpt"
    " context",
    "steps": "step steps process recipe instructions procedure cook prepare ingredients routine methods"
    " guide",
    "advice": "should advice help cope problem feel improve deal handle my tell",
    "role": "you your act assistant imagine pretend role character",
    "harm": "kill bomb illegal steal hack murder drugs drug weapon weapons poison destroy shoot attack"
    " execute blow rob racist stab hurt die dead",
    "self": "i my me we our",
    "table": "table format json csv bullet points output input markdown",
    "given": "given below above provided following based",
    "suppose": "if would imagine suppose hypothetical had",
}
FIRSTS = ("who", "what", "how", "discuss", "write", "list", "choose")
UNITS: Mapping[bytes, float] = {  # tokens of what an answer may be asked to have so many of
    b"word": 1.4, b"words": 1.4, b"tokens": 1.0, b"characters": 0.25, b"line": 12.0, b"lines": 12.0,
    b"sentence": 25.0, b"sentences": 25.0, b"bullet": 25.0, b"points": 25.0, b"steps": 35.0, b"stanzas": 40.0,
    b"paragraph": 110.0, b"paragraphs": 110.0, b"page": 500.0, b"pages": 500.0,
}  # fmt: skip
COUNTS = {word: n for n, word in enumerate(b"single two three four five six seven eight nine ten".split(), 1)}
COUNTS[b"one"] = 1
MANY = frozenset(b"many much old long far tall big often deep high".split())  # after "how": a short answer


def _places() -> dict[bytes, tuple[int, ...]]:
    """The groups that each word is in."""
    found: dict[bytes, tuple[int, ...]] = {}
    for place, words in enumerate(GROUPS.values()):
        for word in words.encode().split():
            found[word] = (*found.get(word, ()), place)
    return found


PLACES = _places()
HOW = list(GROUPS).index("how")
FIRST_PLACES = {list(GROUPS).index(name): place for place, name in enumerate(FIRSTS)}
EARLY = 12  # words
DIGITS = 5  # an amount has fewer
NAMES = (
    *("one", "input", "input_squared", "tokens_small", "lines", "ends_question", "ends_colon", "questions"),
    *("symbols", "digits", "numbers", "quotes", "options", "word_length", "tools", "json", "capped", "cap"),
    *("instruction", "parted", "example", "foreign", "words", "asked", "asks_amount", "how_many", "what_is"),
    "what_are",
    *(f"has_{name}" for name in GROUPS),
    *(f"first_{name}" for name in FIRSTS),
)


def ends(message: str) -> tuple[str, str]:
    """The parts of a message that are looked at: its head, and its tail where that is more."""
    return message[:HEAD], message[max(HEAD, len(message) - TAIL) :]


def shown(query: LengthQuery) -> tuple[str, str]:
    """What `ends` would give, from a query whose two ends may be longer and may overlap."""
    head, tail = query.text_head, query.text_tail
    if not tail or head.endswith(tail):  # the head is the whole message
        return ends(head) if len(head) > HEAD else (head, "")
    return head[:HEAD], tail[-TAIL:]


def text_of(query: LengthQuery) -> bytes:
    """What is looked at, as UTF-8."""
    head, tail = shown(query)
    return (f"{head} {tail}" if tail else head).encode(errors="replace")


def words_of(text: bytes) -> list[bytes]:
    """Words and numbers in order, ASCII in lower case."""
    return text.translate(WORDS).split()


def numbers_of(query: LengthQuery, text: bytes, words: list[bytes]) -> list[float]:
    """One value per name in NAMES, each about 0 to 2."""
    size, number = len(text), len(words)
    scale = 10.0 / (size + 1.0)
    octaves = log1p(query.input_tokens) * 0.2
    close = text[-40:].rstrip()[-1:]
    lines, questions, quotes = text.count(b"\n"), text.count(b"?"), text.count(b'"')
    symbols = scale * (size - len(text.translate(None, SYMBOLS)))
    figures = b" " + text.translate(FIGURES)
    amounts = figures.count(b" 0")
    early = amounts and len(figures[: figures.find(b" 0")].split()) < EARLY
    numbers = scale * amounts
    parted = text.find(b"\n\n") if lines else -1
    instruction = parted if parted > 0 else text.find(b"\n") if lines else size
    cap = query.max_tokens
    return [
        1.0,
        octaves,
        octaves * octaves,
        1.0 if query.input_tokens < 24 else 0.0,
        log1p(lines) * 0.5 if lines else 0.0,
        1.0 if close == b"?" else 0.0,
        1.0 if close == b":" else 0.0,
        questions * 0.25 if questions < 4 else 1.0,
        symbols if symbols < 1.0 else 1.0,
        numbers if numbers < 1.0 else 1.0,
        1.0 if early else 0.0,
        quotes / 6.0 if quotes < 6 else 1.0,
        1.0 if b"(A)" in text or (lines and (b"\nA" in text or b"\na)" in text or b"\n1" in text)) else 0.0,
        min(size / (6.0 * number + 6.0), 2.0),
        1.0 if query.has_tools else 0.0,
        1.0 if query.json_mode else 0.0,
        0.0 if cap is None else 1.0,
        0.0 if cap is None else log1p(cap) * 0.1,
        log1p(instruction) * 0.2,
        1.0 if parted > 0 else 0.0,
        1.0 if b"xample" in text else 0.0,
        0.0 if text.isascii() else len(text.translate(None, ASCII)) / size,
        log1p(number) * 0.2,
        *wishes_of(words),
    ]


def wishes_of(words: list[bytes]) -> list[float]:
    """What is wished for, by the words where a request usually says it: NAMES from "asked" on."""
    zone = words if len(words) <= ASKING + CLOSING else words[:ASKING] + words[-CLOSING:]
    groups, first = [0.0] * len(GROUPS), [0.0] * len(FIRSTS)
    for places in filter(None, map(PLACES.get, zone)):
        for place in places:
            groups[place] = 1.0
    begin = zone[0] if zone else b""
    for place in PLACES.get(begin, ()):
        if place in FIRST_PLACES:
            first[FIRST_PLACES[place]] = 1.0
    asked = 0.0 if UNITS.keys().isdisjoint(zone) else _asked(zone)
    then = zone[1] if len(zone) > 1 else b""
    return [
        asked,
        1.0 if asked else 0.0,
        1.0 if groups[HOW] and zone[(zone.index(b"how") + 1) % len(zone)] in MANY else 0.0,
        1.0 if begin == b"what" and then == b"is" else 0.0,
        1.0 if begin == b"what" and then == b"are" else 0.0,
        *groups,
        *first,
    ]


def _asked(zone: list[bytes]) -> float:
    """A sixth of the log of the most tokens that an amount ("50 words", "two pages") asks for; 0 without."""
    most = 0.0
    for count, unit in pairwise(zone):
        each = UNITS.get(unit)
        if each is not None:
            number = COUNTS.get(count) or (int(count) if count.isdigit() and len(count) < DIGITS else 0)
            most = max(most, number * each)
    return log1p(most) / 6.0


def templates_of(text: bytes, words: list[bytes]) -> tuple[int, int, int, int, int]:
    """Hashes that requests of one template share; 0 without words.

    First word; first three words; first 40 bytes; outward shape; last two words.
    """
    if not words:
        return 0, 0, 0, 0, 0
    shape = len(text).bit_length() << 10 | text.rstrip()[-1] << 2 | (b"?" in text) << 1 | (b"\n" in text)
    return (
        crc32(words[0]),
        crc32(b" ".join(words[:3])),
        crc32(text[:40]),
        shape,
        crc32(b" ".join(words[-2:])),
    )
