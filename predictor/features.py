"""Pure: what a prompt shows about the length of its answer, as numbers and as keys; text is read, never kept.

Only the ends of the last user message are read: HEAD characters from its start and TAIL from its end.
"""

from collections.abc import Mapping
from math import log
from zlib import crc32

from joulegate.domain import LengthQuery

HEAD = 700  # characters of the message's start that are looked at
TAIL = 300  # and of its end
LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz'0123456789") | frozenset(range(128, 256))
WORDS = bytes(c + 32 if 65 <= c <= 90 else c if c in LETTERS else 32 for c in range(256))  # the rest is space
FIGURES = bytes(48 if 48 <= c <= 57 or c == 39 else WORDS[c] for c in range(256))  # a digit or ' is 0
NO_SYMBOLS = bytes(c for c in range(256) if c not in b"{(;=<_")

GROUPS: Mapping[str, tuple[str, ...]] = {
    "wh": ("what", "who", "when", "where", "which", "whose"),
    "how": ("how",),
    "why": ("why", "explain", "describe", "discuss", "analyze", "compare", "difference", "evaluate"),
    "write": ("write", "create", "generate", "compose", "draft", "make", "build", "design", "develop"),
    "list": ("list", "give", "suggest", "provide", "name", "recommend", "ideas", "tips", "examples", "ways"),
    "choose": (
        *("answer", "choose", "option", "options", "select", "classify", "category", "categorize"),
        *(
            "identify",
            "determine",
            "true",
            "false",
            "yes",
            "no",
            "sentiment",
            "label",
            "following",
            "correct",
            "or",
        ),
    ),
    "brief": ("brief", "briefly", "short", "one", "sentence", "word", "words", "concise", "single", "only"),
    "long": (
        *("detailed", "detail", "essay", "story", "article", "blog", "comprehensive", "report", "outline"),
        *("paragraph", "paragraphs", "long", "plan", "guide", "tutorial", "script", "review", "speech"),
    ),
    "letter": ("poem", "letter", "email", "song", "lyrics", "haiku", "tweet", "post", "title", "slogan"),
    "code": (
        *("python", "function", "code", "program", "sql", "html", "javascript", "java", "class", "algorithm"),
        *("api", "c", "css", "react", "bash", "query", "regex", "implement", "script", "method"),
    ),
    "maths": ("calculate", "solve", "equation", "probability", "many", "sum", "number", "value", "prove"),
    "rewrite": (
        *("rewrite", "edit", "paraphrase", "translate", "convert", "fix", "grammar", "rephrase", "transform"),
        *("replace", "change", "extract", "fill", "complete"),
    ),
    "summary": ("summarize", "summarise", "summary", "tldr", "passage", "text", "article", "conversation"),
    "steps": ("step", "steps", "process", "recipe", "instructions", "procedure", "tutorial", "cook"),
    "role": ("you", "your", "act", "assistant", "imagine", "pretend", "role"),
    "harm": (
        *("kill", "bomb", "illegal", "steal", "hack", "murder", "drugs", "drug", "weapon", "weapons"),
        *(
            "poison",
            "destroy",
            "shoot",
            "attack",
            "execute",
            "blow",
            "rob",
            "racist",
            "stab",
            "hurt",
            "die",
            "dead",
        ),
    ),
    "self": ("i", "my", "me", "i'm", "we", "our"),
    "please": ("please", "help", "can", "could", "would"),
    "table": ("table", "format", "json", "csv", "bullet", "points", "output", "input"),
}
FIRSTS = ("wh", "how", "why", "write", "list", "choose")  # the first groups
PLACE = {word.encode(): place for place, words in enumerate(GROUPS.values(), 1) for word in words}  # from 1
EARLY = 12  # words
NAMES = (
    *("one", "input", "input_squared", "tokens_small", "lines", "ends_question", "ends_colon", "questions"),
    *("symbols", "digits", "numbers", "quotes", "options", "word_length", "tools", "json", "capped", "cap"),
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
    scale = 10.0 / (len(text) + 1.0)
    octaves = log(query.input_tokens + 1.0) * 0.2
    close = text[-40:].rstrip()[-1:]
    lines, questions, quotes = text.count(b"\n"), text.count(b"?"), text.count(b'"')
    symbols = scale * len(text.translate(None, NO_SYMBOLS))
    groups, first = [0.0] * (1 + len(GROUPS)), [0.0] * (1 + len(FIRSTS))
    for place in filter(None, map(PLACE.get, words)):
        groups[place] = 1.0 if groups[place] else 0.7
    if words and (place := PLACE.get(words[0], 0)) < len(first):
        first[place] = 1.0
    figures = b" " + text.translate(FIGURES)
    number = figures.count(b" 0")
    early = number and len(figures[: figures.find(b" 0")].split()) < EARLY
    numbers = scale * number
    cap = query.max_tokens
    return [
        1.0,
        octaves,
        octaves * octaves,
        1.0 if query.input_tokens < 24 else 0.0,
        log(lines + 1.0) * 0.5 if lines else 0.0,
        1.0 if close == b"?" else 0.0,
        1.0 if close == b":" else 0.0,
        questions * 0.25 if questions < 4 else 1.0,
        symbols if symbols < 1.0 else 1.0,
        numbers if numbers < 1.0 else 1.0,
        1.0 if early else 0.0,
        quotes / 6.0 if quotes < 6 else 1.0,
        1.0 if b"(A)" in text or (lines and (b"\nA" in text or b"\na)" in text or b"\n1" in text)) else 0.0,
        min(len(text) / (6.0 * len(words) + 6.0), 2.0),
        1.0 if query.has_tools else 0.0,
        1.0 if query.json_mode else 0.0,
        0.0 if cap is None else 1.0,
        0.0 if cap is None else log(cap + 1.0) * 0.1,
        *groups[1:],
        *first[1:],
    ]


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
