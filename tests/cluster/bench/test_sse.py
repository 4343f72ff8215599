from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.bench.sse import SseParser

STREAM = (
    b': hello\r\n\r\ndata: {"a": 1}\n\nevent: x\ndata:two\r\ndata: lines\r\n\r\n\n\ndata: [DONE]\n\ndata: unfinished\n'
)
EVENTS = [b'{"a": 1}', b"two\nlines", b"[DONE]"]


def test_events_are_the_data_between_blank_lines():
    assert SseParser().feed(STREAM) == EVENTS


@given(st.sets(st.integers(1, len(STREAM) - 1)))
def test_it_does_not_matter_where_the_stream_is_cut(cuts):
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = SseParser()
    found = [event for start, end in pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert found == EVENTS
