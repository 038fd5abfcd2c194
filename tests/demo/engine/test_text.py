"""Tokens to text: UTF-8 in pieces, and stop strings."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.engine.tokenizer import END_OF_TEXT, TextStream, encode


def play(tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[str, bool]:
    stream = TextStream(stop)
    text = ""
    for token in tokens:
        piece, stopped = stream.push(token)
        text += piece
        if stopped:
            return text, True
    return text + stream.finish(), False


@given(st.binary(max_size=40))
def test_bytes_in_pieces_give_the_text_of_the_whole(data: bytes) -> None:
    assert play(list(data)) == (data.decode("utf-8", errors="replace"), False)


@given(
    st.text("ab\u00e9", max_size=20),
    st.lists(st.text("ab\u00e9", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_text_ends_at_its_first_stop_string(text: str, stop: list[str]) -> None:
    ends = [(text.find(word) + len(word), text.find(word)) for word in stop if word in text]
    played, stopped = play(encode(text), tuple(stop))
    assert stopped == bool(ends)
    if not ends:
        assert played == text
        return
    first_end = min(ends)[0]  # generation stops with the token that completes a stop string
    assert played == text[: min(start for end, start in ends if end == first_end)]


def test_a_token_is_a_byte_and_the_end_of_text_is_not_text() -> None:
    assert encode("h\u00e9") == [104, 195, 169]
    assert play([104, END_OF_TEXT]) == ("h", False)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_from_json_becomes_a_question_mark(text: str) -> None:
    assert "?" in bytes(encode(text)).decode()


def test_a_possible_stop_string_is_held_back_until_it_is_decided() -> None:
    stream = TextStream(("END",))
    assert [stream.push(ord(letter))[0] for letter in "xEN"] == ["x", "", ""]
    assert stream.push(ord("!")) == ("EN!", False)
