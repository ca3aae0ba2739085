"""What the tests ask a real vLLM, through the gateway and directly."""

from openai.types.chat import (
    ChatCompletionMessageParam,
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionToolParam,
)
from openai.types.shared_params import ResponseFormatJSONSchema

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Name three colours."},
]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
}
COLOUR: ResponseFormatJSONSchema = {
    "type": "json_schema",
    "json_schema": {"name": "colours", "schema": SCHEMA},
}
PAINT: ChatCompletionToolParam = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}
PAINTING: ChatCompletionNamedToolChoiceParam = {"type": "function", "function": {"name": "paint"}}
