"""Tokens and text."""

import pytest

from demo.engine.tokenizer import END_OF_TEXT, encode, token_text


def test_a_token_is_a_byte_and_the_end_of_text_is_not_text() -> None:
    assert encode("h\u00e9") == [104, 195, 169]
    assert token_text(104) + token_text(END_OF_TEXT) == "h"


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_from_json_becomes_a_question_mark(text: str) -> None:
    assert "?" in bytes(encode(text)).decode()
