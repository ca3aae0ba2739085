"""The text of a message, whatever it is made of."""

import pytest

from joulegate.messages import content_text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param("one", "one", id="text"),
        pytest.param(
            [{"type": "text", "text": "one"}, {"type": "text", "text": " two"}], "one two", id="parts"
        ),
        pytest.param([{"type": "image_url", "image_url": {}}, {"text": "one"}], "one", id="a picture"),
        pytest.param(["one", " two"], "one two", id="bare parts"),
        pytest.param([{"text": 3}, 4, None, ["x"]], "", id="no text"),
        pytest.param(None, "", id="nothing"),
        pytest.param({"text": "one"}, "", id="no list"),
    ],
)
def test_the_text_parts_of_a_message_count(content: object, text: str) -> None:
    assert content_text(content) == text
