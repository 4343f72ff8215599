import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.stream import TextDelta, TextStream
from protos.errors import InvalidRequest

STOPS = st.lists(st.text("ab\nthé世👩", min_size=1, max_size=4) | st.sampled_from(["stop", "ing", "abcab"]), max_size=4)
TEXT = st.text("abc\nthesop é世👩") | st.text()


def cut(text, stops):
    """Return the text before the stop that ends first, the longest of those that end together."""
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    return text[: sum(min(found))] if found else text


def stream_all(stream, chunks):
    """Return all texts until the end, and how many chunks it took to stop."""
    texts = []
    for count, chunk in enumerate(chunks, start=1):
        delta = stream.push(chunk)
        texts.append(delta.text)
        if delta.stopped:
            assert stream.finish() == ""
            return texts, count
    return [*texts, stream.finish()], None


def split(data, ids):
    """Cut ids at places that hypothesis chooses."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [ids[start:end] for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@given(st.data(), TEXT, STOPS)
def test_any_chunking_of_a_text_gives_the_text_up_to_the_stop(small_tokenizer, data, text, stops):
    ids = small_tokenizer.encode(text)
    expected = cut(small_tokenizer.decode(ids), stops)

    texts, _ = stream_all(TextStream(small_tokenizer, stops), split(data, ids))

    assert "".join(texts) == expected


@given(st.data(), STOPS)
def test_any_chunking_of_any_tokens_gives_what_decode_gives(small_tokenizer, data, stops):
    ids = data.draw(st.lists(st.integers(0, small_tokenizer.vocab_size - 1), max_size=40))

    texts, _ = stream_all(TextStream(small_tokenizer, stops), split(data, ids))

    assert "".join(texts) == cut(small_tokenizer.decode(ids), stops)


@given(TEXT, STOPS)
def test_what_is_sent_is_never_taken_back_and_little_is_held(small_tokenizer, text, stops):
    stream, sent = TextStream(small_tokenizer, stops), ""
    ids = small_tokenizer.encode(text)
    longest = max(map(len, stops), default=1)
    for count, token_id in enumerate(ids, start=1):
        delta = stream.push([token_id])
        sent += delta.text
        if delta.stopped:
            break
        # Complete characters so far, less what may begin a stop string.
        known = b"".join(map(small_tokenizer.token_bytes, ids[:count])).decode(errors="ignore")
        assert known.startswith(sent)
        assert len(known) - len(sent) < longest


def test_half_a_character_is_held_until_it_is_whole(small_tokenizer):
    stream = TextStream(small_tokenizer)
    first, *rest = small_tokenizer.encode("👩")

    assert rest
    assert stream.push([first]) == TextDelta("", False)
    assert stream.push(rest) == TextDelta("👩", False)
    assert stream.finish() == ""


def test_a_character_cut_short_ends_as_the_replacement_character(small_tokenizer):
    stream = TextStream(small_tokenizer)

    assert stream.push(small_tokenizer.encode("a世")[:-1]).text == "a"
    assert stream.finish() == "\ufffd"


def test_a_broken_character_is_replaced_when_the_next_one_shows_it(small_tokenizer):
    stream = TextStream(small_tokenizer)

    assert [stream.push([each]).text for each in (0xE4, 0x61)] == ["", "\ufffda"]


def test_special_tokens_have_no_text(small_tokenizer):
    stream = TextStream(small_tokenizer)
    eot = small_tokenizer.special_id("<|eot|>")

    assert stream.push([small_tokenizer.bos_id, *small_tokenizer.encode("Hello"), eot]) == TextDelta("Hello", False)


def test_a_stop_string_may_span_special_tokens(small_tokenizer):
    stream = TextStream(small_tokenizer, ["ab"])

    assert stream.push([0x61, small_tokenizer.bos_id, 0x62]) == TextDelta("", True)


def test_the_start_of_a_stop_string_is_held_and_sent_when_it_is_none(small_tokenizer):
    stream = TextStream(small_tokenizer, ["\n\nUser:"])

    texts = [stream.push(small_tokenizer.encode(piece)).text for piece in ("Hi\n", "\nUs", "ed\n", "")]

    assert texts == ["Hi", "", "\n\nUsed", ""]
    assert stream.finish() == "\n"


def test_the_stop_that_ends_first_wins(small_tokenizer):
    stream = TextStream(small_tokenizer, ["abcd", "bc"])

    assert stream.push(small_tokenizer.encode("xabcd")) == TextDelta("xa", True)


def test_of_stops_that_end_together_the_longest_wins(small_tokenizer):
    stream = TextStream(small_tokenizer, ["c", "bc", "abc"])

    assert stream.push(small_tokenizer.encode("xabc")) == TextDelta("x", True)


def test_nothing_follows_a_stop(small_tokenizer):
    stream = TextStream(small_tokenizer, ["!"])

    assert stream.push(small_tokenizer.encode("Hi! there")) == TextDelta("Hi", True)
    assert stream.push(small_tokenizer.encode("more")) == TextDelta("", True)
    assert stream.finish() == ""


def test_an_empty_stop_string_is_refused(small_tokenizer):
    with pytest.raises(InvalidRequest, match="at least one character"):
        TextStream(small_tokenizer, [""])


def test_an_id_out_of_range_is_refused(small_tokenizer):
    with pytest.raises(InvalidRequest, match="expected token ids from 0"):
        TextStream(small_tokenizer).push([small_tokenizer.vocab_size])
