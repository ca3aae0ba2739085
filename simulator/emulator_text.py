"""Pure: text and tokens of the emulated engines, without a tokenizer.

A token is 4 characters: a text of n characters has ceil(n/4) tokens, a chat message 4 more, a conversation 3
more. Output is a fixed run of four-character words, one a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import exp
from statistics import NormalDist

CHARACTERS_PER_TOKEN = 4
MESSAGE_TOKENS = 4
TRUE_OUTPUT_TOKENS = b"x-joulegate-true-output-tokens"  # header: how long the output is to be
CONVERSATION_TOKENS = 3
WORDS = (b" the", b" low", b" sun", b" and", b" one", b" far", b" sky")  # CHARACTERS_PER_TOKEN each


def text_tokens(text: str) -> int:
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def chat_text(messages: Sequence[Mapping[str, object]]) -> tuple[str, int]:
    """(all text of a conversation, its tokens). Content may be text or a list of parts."""
    texts = [_content(message.get("content")) for message in messages]
    tokens = CONVERSATION_TOKENS + sum(MESSAGE_TOKENS + text_tokens(text) for text in texts)
    return "\n".join(texts), tokens


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in parts if isinstance(text, str))
    return ""


def output_text(tokens: int) -> str:
    """The text of that many output tokens, from the first."""
    cycle = b"".join(WORDS).decode()
    return (cycle * (tokens // len(WORDS) + 1))[: tokens * CHARACTERS_PER_TOKEN]


@dataclass(frozen=True, slots=True)
class OutputLengths:
    """Log-normal output lengths; the same prompt under the same seed always gets the same one."""

    median: float
    sigma: float
    seed: int

    def draw(self, prompt: str, choice: int) -> int:
        digest = blake2b(f"{self.seed}/{choice}/{prompt}".encode(), digest_size=8).digest()
        share = (int.from_bytes(digest, "big") + 0.5) / 2**64
        return max(1, round(self.median * exp(self.sigma * NormalDist().inv_cdf(share))))
