"""Pure: what a prompt shows about the length of its answer, as numbers and as keys; text is read, never kept.

Only the ends of the last user message are read: HEAD characters from its start and TAIL from its end.
"""

import re
from collections.abc import Mapping
from math import log
from zlib import crc32

from joulegate.domain import LengthQuery

HEAD = 700  # characters of the message's start that are looked at
TAIL = 300  # and of its end
WORDS = re.compile(rb"[a-z']+|[0-9]+")

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
NINE = ord("9")  # below it, among the first characters of words, are only digits and the apostrophe
PLACE = {word.encode(): place for place, words in enumerate(GROUPS.values()) for word in words}
NAMES = (
    *("one", "input", "input_squared", "tokens_small", "lines", "ends_question", "ends_colon", "questions"),
    *("symbols", "digits", "numbers", "quotes", "options", "word_length", "tools", "json", "capped", "cap"),
    *(f"has_{name}" for name in GROUPS),
    *(f"first_{name}" for name in ("wh", "how", "why", "write", "list", "choose")),
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


def words_of(head: str, tail: str) -> list[bytes]:
    """Lower-case words and numbers of the head, then of the tail, as UTF-8."""
    return WORDS.findall(f"{head} {tail}".lower().encode(errors="replace"))


def numbers_of(query: LengthQuery, text: str, words: list[bytes]) -> list[float]:
    """One value per name in NAMES, each about 0 to 2."""
    size = len(text) + 1.0
    octaves = log(query.input_tokens + 1.0) * 0.2
    close = text[-40:].rstrip()[-1:]
    count = text.count
    groups = [0.0] * len(GROUPS)
    place_of = PLACE.get
    for place in map(place_of, words):
        if place is not None:
            groups[place] += 1.0
    digits = [word[0] <= NINE for word in words]
    first = place_of(words[0], -1) if words else -1
    symbols = count("{") + count("(") + count(";") + count("=") + count("<") + count("_")
    return [
        1.0,
        octaves,
        octaves * octaves,
        float(query.input_tokens < 24),
        log(count("\n") + 1.0) * 0.5,
        float(close == "?"),
        float(close == ":"),
        min(count("?"), 4) * 0.25,
        min(1.0, 10.0 * symbols / size),
        min(1.0, 10.0 * sum(digits) / size),
        float(any(digits[:12])),
        min(count('"'), 6) / 6.0,
        float("\nA" in text or "(A)" in text or "\na)" in text or "\n1" in text),
        len(text) / (6.0 * len(words) + 6.0),
        float(query.has_tools),
        float(query.json_mode),
        float(query.max_tokens is not None),
        log(query.max_tokens + 1.0) * 0.1 if query.max_tokens is not None else 0.0,
        *[1.0 if found > 1.0 else 0.7 * found for found in groups],
        *[float(first == place) for place in (0, 1, 2, 3, 4, 5)],
    ]


def templates_of(head: str, tail: str, words: list[bytes]) -> tuple[int, int, int, int, int]:
    """Hashes that requests of one template share; 0 without text.

    First word; first three words; first 40 characters; outward shape; last two words.
    """
    if not words:
        return 0, 0, 0, 0, 0
    text = tail or head
    close = crc32(text.rstrip()[-1:].encode(errors="replace"), (len(head) + len(tail)).bit_length())
    return (
        crc32(words[0]),
        crc32(b" ".join(words[:3])),
        crc32(head[:40].encode(errors="replace")),
        close ^ ("?" in text) ^ ("\n" in head) << 1,
        crc32(b" ".join(words[-2:])),
    )
