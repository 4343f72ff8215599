import json
from pathlib import Path

from cluster.bench.record import SCHEMA, build_record, request_record, write_record
from cluster.bench.settings import Replay
from cluster.bench.summary import summarise
from tests.cluster.bench.measured import answered, failed, not_sent, result, settings

ONE = answered(0.25, [(0.5, 1), (1.0, 2)], end_s=1.25, usage_prompt_tokens=20, cached_tokens=16, finish_reason="length")
TOP = {
    "schema",
    "started_at",
    "duration_s",
    "is_interrupted",
    "gave_up",
    "settings",
    "target",
    "environment",
    "num_clipped",
    "summary",
    "caveats",
    "requests",
}
ROW = {
    "index": 0,
    "status": "ok",
    "scheduled_s": None,
    "sent_s": 0.25,
    "end_s": 1.25,
    "ttft_ms": 250.0,
    "tpot_ms": 250.0,
    "e2e_ms": 1000.0,
    "max_gap_ms": 500.0,
    "prompt_tokens": 20,
    "cached_tokens": 16,
    "max_tokens": 3,
    "output_tokens": 3,
    "messages": 2,
    "finish_reason": "length",
    "error": None,
}


def test_the_schema_is_stable():
    found = result([ONE])
    record = build_record(found, summarise(found))
    assert record["schema"] == SCHEMA == "herd-bench/1"
    assert set(record) == TOP
    assert set(record["summary"]) == {"requests", "errors", "latencies", "throughput", "goodput", "client"}
    assert record["summary"]["latencies"]["ttft_ms"] == {
        "count": 1, "mean": 250, "min": 250, "p50": 250, "p90": 250, "p95": 250, "p99": 250, "max": 250
    }  # fmt: skip
    assert record["requests"] == [ROW]


def test_messages_are_written_when_asked_for():
    row = request_record(ONE, with_messages=True)
    assert (row["message_s"], row["message_tokens"]) == ([0.5, 1.0], [1, 2])


def test_a_failed_request_tells_why_and_one_not_sent_has_no_times():
    assert request_record(failed(0.0, 1.0, "timeout", "late"))["error"] == {"kind": "timeout", "message": "late"}
    row = request_record(not_sent(1.5))
    assert (row["status"], row["scheduled_s"], row["sent_s"], row["e2e_ms"]) == ("not sent", 1.5, None, None)


def test_settings_are_written_without_the_key(tmp_path):
    told = settings(endpoint={"api_key": "secret"}, arrival=Replay(path=Path("t.csv")))
    found = result([ONE], settings=told)
    path = tmp_path / "run.json"
    write_record(found, summarise(found), path)
    assert "secret" not in path.read_text()
    record = json.loads(path.read_text())
    assert record["settings"]["arrival"] == {"kind": "Replay", "path": "t.csv", "time_scale": 1.0, "limit": None}
    assert record["environment"]["cpus"] >= 1
