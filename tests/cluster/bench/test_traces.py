from pathlib import Path

import pytest

from cluster.bench.traces import TraceRow, read_trace
from protos.errors import InvalidRequest

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9305900,396,109
2023-11-16 18:15:51.1805900,0,0
"""
AZURE_2024 = """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.259930+00:00,2399,6
"""
MOONCAKE = """{"timestamp": 27482, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30535, "input_length": 1024, "output_length": 0, "hash_ids": [46, 48]}

{"timestamp": 30535.5, "input_length": 7, "output_length": 3, "extra": null}
"""


def trace(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_azures_times_count_from_the_first_request_and_nothing_is_shorter_than_a_token(tmp_path):
    rows = read_trace(trace(tmp_path, AZURE))
    assert [row.at_s for row in rows] == pytest.approx([0, 4.25, 4.5])
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(374, 44), (396, 109), (1, 1)]
    assert {row.hash_ids for row in rows} == {None}


def test_azures_later_traces_have_a_time_zone(tmp_path):
    assert [row.at_s for row in read_trace(trace(tmp_path, AZURE_2024))] == pytest.approx([0, 0.25])


def test_mooncakes_rows_have_hash_ids_or_none(tmp_path):
    rows = read_trace(trace(tmp_path, MOONCAKE))
    assert [row.at_s for row in rows] == pytest.approx([0, 3.053, 3.0535])
    assert [(row.input_tokens, row.output_tokens, row.hash_ids) for row in rows] == [
        (600, 52, (46, 47)),
        (1024, 1, (46, 48)),
        (7, 3, None),
    ]


def test_a_limit_takes_the_first_rows(tmp_path):
    assert len(read_trace(trace(tmp_path, AZURE), limit=2)) == 2


def test_a_limit_leaves_later_mistakes_unread(tmp_path):
    assert len(read_trace(trace(tmp_path, MOONCAKE + "oops\n"), limit=3)) == 3


def test_rows_out_of_order_are_put_in_order(tmp_path):
    lines = ['{"timestamp": 500, "input_length": 5, "output_length": 1}']
    lines += ['{"timestamp": 200, "input_length": 2, "output_length": 1}']
    rows = read_trace(trace(tmp_path, "\n".join(lines)))
    assert rows[0] == TraceRow(at_s=0, input_tokens=2, output_tokens=1)
    assert rows[1].at_s == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header with TIMESTAMP, ContextTokens, GeneratedTokens .* found an empty file"),
        ("time,in,out\n1,2,3\n", "line 1: expected a header .* found time,in,out"),
        ("TIMESTAMP,ContextTokens\n", "line 1: expected a header with GeneratedTokens "),
        (AZURE + "2023-11-16 18:15:52,5\n", "line 5: expected 3 fields, found 2"),
        (AZURE + "yesterday,5,6\n", "line 5: expected a TIMESTAMP such as .*, found 'yesterday'"),
        (AZURE + "2023-11-16 18:15:52,5.5,6\n", "line 5: expected ContextTokens as a whole number, found '5.5'"),
        (AZURE + "2023-11-16 18:15:52,5,-6\n", "line 5: expected GeneratedTokens as a whole number, found '-6'"),
        (MOONCAKE + "oops\n", "line 5: expected a JSON object, found 'oops'"),
        (MOONCAKE + "[1]\n", r"line 5: expected a JSON object, found '\[1\]'"),
        ('{"input_length": 5, "output_length": 5}', "line 1: expected timestamp in milliseconds, .* found none"),
        ('{"timestamp": -1, "input_length": 5, "output_length": 5}', "expected timestamp .* found -1"),
        ('{"timestamp": NaN, "input_length": 5, "output_length": 5}', "expected timestamp .* found nan"),
        ('{"timestamp": 1, "input_length": 5.5, "output_length": 5}', "expected input_length .* found 5.5"),
        ('{"timestamp": 1, "input_length": 5, "output_length": true}', "expected output_length .* found True"),
        ('{"timestamp": 1, "input_length": 5, "output_length": 5, "hash_ids": ["a"]}', "expected hash_ids as a list"),
        (
            '{"timestamp": 1, "input_length": 513, "output_length": 5, "hash_ids": [1]}',
            "expected 2 hash_ids for 513 tokens in blocks of 512, found 1: correct the trace",
        ),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(InvalidRequest, match=message):
        read_trace(trace(tmp_path, text))


def test_a_trace_without_requests_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="expected at least one request, found none"):
        read_trace(trace(tmp_path, AZURE.splitlines()[0]))


def test_a_trace_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="--trace: expected a text file, found"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="--trace: expected a text file, found"):
        read_trace(tmp_path / "binary")
