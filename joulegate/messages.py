"""Pure: the text of a message as OpenAI's clients write it."""


def content_text(content: object) -> str:
    """The content itself, or the text parts of it; a part may be bare text, as vLLM takes it."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join([part for part in parts if isinstance(part, str)])
    return ""
