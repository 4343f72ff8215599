"""What is logged of a request, by which name, and in which form."""

import io
import json
import logging
import re
import time

import grpc
import pytest

from cluster.config import LogSettings
from cluster.logs import configure_logs, fields
from cluster.refused_lines import RefusedLines
from cluster.request_id import HEADER, request_id
from protos.errors import NoReplica
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.scripted_router import fails, then_holds
from tests.cluster.test_bounded_connection import answer_to, connect, faults
from tests.experts.replica_client import wait_until

_LOG = logging.getLogger("cluster.of_this_test")


@pytest.fixture
def logged():
    """Return what writes with some settings and gives the lines; the process logs as before afterwards."""
    levels = {name: logging.getLogger(name).level for name in ("cluster", "router", "experts", "context", "models")}
    used = []

    def start(**settings) -> io.StringIO:
        stream = io.StringIO()
        used.append(configure_logs(LogSettings(**settings), stream))
        return stream

    yield start
    for handler in used:
        logging.getLogger().removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def ends(caplog, count: int = 1) -> list[dict]:
    """Return the fields of the lines that tell of requests' ends, once there are so many."""
    give_up_at = time.monotonic() + 20
    while True:
        found = [record.fields for record in list(caplog.records) if record.getMessage() == "request ended"]
        if len(found) >= count or time.monotonic() > give_up_at:
            return found
        time.sleep(0.005)


def test_a_line_of_text_has_its_fields_as_names_and_values(logged):
    stream = logged()
    _LOG.info("request ended", extra=fields(request_id="a", seconds=0.25, nothing=None, reason='gone = "far"'))
    line = re.fullmatch(r"(\S+Z) INFO cluster.of_this_test request ended (.*)\n", stream.getvalue())
    assert line[2] == 'request_id=a seconds=0.250 reason="gone = \\"far\\""'


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_peer_calls_itself_writes_no_line_of_its_own(logged, form):
    stream = logged(format=form)
    _LOG.info("router %s went away", "a\n2026-01-01T00:00:00.000Z ERROR cluster forged\x1b[2J\u2028b")
    [line] = stream.getvalue().splitlines()
    assert "forged" in line
    assert "\x1b" not in line


def test_a_line_of_json_is_one_object(logged):
    stream = logged(format="json")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        _LOG.exception("a step failed", extra=fields(request_id="a", tokens=3))
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("error", "cluster.of_this_test", "a step failed")
    assert (found["request_id"], found["tokens"]) == ("a", 3)
    assert "ValueError: two\nlines" in found["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])


def test_the_level_is_of_herds_lines_and_others_are_told_when_they_warn(logged):
    stream = logged(level="warning")
    _LOG.info("not told")
    logging.getLogger("router.engine").warning("told")
    logging.getLogger("of.others").info("not told")
    logging.getLogger("of.others").warning("told, too")
    assert [line.split(" ", 3)[3] for line in stream.getvalue().splitlines()] == ["told", "told, too"]


def test_to_configure_twice_does_not_write_twice(logged):
    first, second = logged(), logged()
    _LOG.info("once")
    assert (first.getvalue(), second.getvalue().count("once")) == ("", 1)


@pytest.mark.parametrize("given", [None, "", "a b", "a\nb", "x" * 129, "ü", b"\xff"])
def test_a_name_that_cannot_be_written_is_replaced(given):
    named = request_id(given)
    assert not named.is_given
    assert re.fullmatch("[0-9a-f]{32}", named.value)


def test_a_request_is_called_what_its_client_calls_it(door, router, caplog):
    caplog.set_level(logging.INFO, "cluster")
    for stream in (False, True):
        status, headers, _ = door.post("/v1/completions", {"prompt": [5, 6], "stream": stream}, x_request_id="mine-7")
        assert (status, headers.get_all(HEADER)) == (200, ["mine-7"])
    sent = [request.request_id for request in router.requests]
    assert len(set(sent)) == 2, "two clients may choose the same name"
    assert all(name.startswith("cmpl-mine-7-") for name in sent)
    for end in (told := ends(caplog, 2)):
        assert end.pop("seconds") >= 0
        assert end == {
            "request_id": "mine-7",
            "api": "completions",
            "code": "200",
            "prompt_tokens": 2,
            "tokens": 5,
            "finished": "length",
        }
    assert len(told) == len(caplog.records) == 2, "one line for each request"


def test_a_request_without_a_name_gets_one(door, router):
    _, headers, body = door.post("/v1/completions", {"prompt": [5, 6]})
    assert body["id"] == f"cmpl-{headers[HEADER]}"
    assert router.requests[0].request_id == f"{body['id']}-0"


def test_refusals_say_the_name_and_are_logged_without_what_was_sent(door, caplog):
    caplog.set_level(logging.INFO)
    status, headers, body = door.post("/v1/completions", {"prompt": {"secret": "swordfish"}}, x_request_id="mine-8")
    assert (status, headers[HEADER]) == (400, "mine-8")
    assert "swordfish" in body["error"]["message"]
    [end] = ends(caplog)
    assert (end["request_id"], end["code"], end["error"]) == ("mine-8", "400", "INVALID_REQUEST")
    assert "swordfish" not in json.dumps([record.__dict__ for record in caplog.records], default=str)


def test_lines_of_refused_requests_are_bounded_and_say_what_was_left_out(door, caplog):
    caplog.set_level(logging.INFO, "cluster")
    now = [0.0]
    door.service._refused_lines = RefusedLines(per_minute=60, clock=lambda: now[0])
    for number in range(64):
        door.post("/v1/completions", {"prompt": {}}, x_request_id=f"mine-{number}")
    door.post("/v1/completions", {"prompt": [5]}, x_request_id="good")
    now[0] = 1.0
    door.post("/v1/completions", {"prompt": {}}, x_request_id="later")
    *lines, good, later = ends(caplog, 62)
    assert [line["request_id"] for line in lines] == [f"mine-{number}" for number in range(60)]
    assert (good["request_id"], later["request_id"], later["left_out"]) == ("good", "later", 4)
    assert 'herd_requests_total{api="completions",code="400"} 65.0' in door.get("/metrics")[2]


def test_lines_of_clients_that_leave_before_their_body_came_are_bounded_too(door, caplog):
    caplog.set_level(logging.INFO, "cluster")
    door.service._refused_lines = RefusedLines(per_minute=2, clock=lambda: 0.0)
    for _ in range(5):
        with connect(door) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    wait_until(lambda: 'herd_requests_total{api="completions",code="499"} 5.0' in door.get("/metrics")[2])
    door.post("/v1/completions", {"prompt": [5]}, x_request_id="good")
    assert [each["code"] for each in ends(caplog, 3)] == ["499", "499", "200"]


def test_bytes_that_are_no_request_are_counted_and_not_logged(door, caplog):
    answer_to(door, b"no HTTP\r\n\r\n")
    answer_to(door, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n")
    assert faults(door, "malformed") == 1
    assert [each.message for each in caplog.records if each.name.startswith("uvicorn")] == []


def test_a_failure_is_logged_with_its_reason_and_the_tokens_that_came(door, router, caplog):
    caplog.set_level(logging.INFO, "cluster")
    router.script = fails(NoReplica("expected expert 3, found nobody who holds it; wait"), 72, 101)
    door.post("/v1/completions", {"prompt": [5], "stream": True}, x_request_id="mine-9")
    [end] = ends(caplog)
    assert (end["request_id"], end["code"], end["tokens"]) == ("mine-9", "503", 2)
    assert (end["error"], end["reason"]) == ("NO_REPLICA", "expected expert 3, found nobody who holds it; wait")


def test_a_client_that_leaves_is_logged(door, router, client, caplog):
    caplog.set_level(logging.INFO, "cluster")
    router.script = then_holds(72)
    named = {HEADER: "mine-10"}
    with client.completions.create(model="tiny", prompt=[5], stream=True, extra_headers=named) as stream:
        next(iter(stream))
    [end] = ends(caplog)
    assert (end["request_id"], end["code"], end["tokens"]) == ("mine-10", "499", 1)


def test_a_grpc_call_is_called_what_its_metadata_say(door, router, caplog):
    caplog.set_level(logging.INFO, "cluster")
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6]))
    with grpc.insecure_channel(door.grpc_address) as channel:
        call = InferenceServiceStub(channel).Generate(request, metadata=((HEADER, "mine-11"),), timeout=20)
        assert dict(call.initial_metadata())[HEADER] == "mine-11"
        started = next(call).started
        list(call)
    assert started.request_id.startswith("gen-mine-11-")
    [end] = ends(caplog)
    assert (end["request_id"], end["api"], end["code"], end["tokens"]) == ("mine-11", "grpc", "OK", 5)


def test_a_routers_lines_about_a_sequence_have_its_requests_name(id_engine_door, caplog):
    caplog.set_level(logging.DEBUG, "router")
    body = {"prompt": [5, 6], "max_tokens": 3, "ignore_eos": True}
    id_engine_door.post("/v1/completions", body, x_request_id="mine-12")
    accepted, ended = (record for record in caplog.records if "sequence" in record.message)
    assert accepted.message == "sequence accepted"
    assert accepted.fields["prompt_tokens"] == 2
    assert (ended.message, ended.fields["tokens"], ended.fields["finished"]) == ("sequence ended", 3, "length")
    assert accepted.fields["request_id"] == ended.fields["request_id"]
    assert ended.fields["request_id"].startswith("cmpl-mine-12-")
