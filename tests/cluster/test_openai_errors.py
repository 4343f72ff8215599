import http.client
import json
import socket

import openai
import pytest

from cluster.service import InferenceService
from protos.errors import InternalError, NoReplica, Overloaded, ReplicaUnavailable
from tests.cluster.conftest import openai_client
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import fails

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]

# (path, body, status, param, code, words of the message)
WRONG = {
    "empty text": (COMPLETIONS, {"prompt": ""}, 400, "prompt", "invalid_request", "at least one"),
    "no token ids": (COMPLETIONS, {"prompt": []}, 400, "prompt", "invalid_request", "at least one"),
    "an empty list among prompts": (COMPLETIONS, {"prompt": [[5], []]}, 400, "prompt", "invalid_request", "found none"),
    "no prompt": (COMPLETIONS, {}, 400, "prompt", "invalid_request", "required"),
    "null prompt": (COMPLETIONS, {"prompt": None}, 400, "prompt", "invalid_request", "found None"),
    "text among ids": (COMPLETIONS, {"prompt": [[1, "a"]]}, 400, "prompt", "invalid_request", "'a'"),
    "null among ids": (COMPLETIONS, {"prompt": [1, None]}, 400, "prompt", "invalid_request", "None"),
    "true among ids": (COMPLETIONS, {"prompt": [1, True]}, 400, "prompt", "invalid_request", "True"),
    "a fraction among ids": (COMPLETIONS, {"prompt": [1, 2.5]}, 400, "prompt", "invalid_request", "2.5"),
    "id too high": (COMPLETIONS, {"prompt": [5, 311]}, 400, "prompt", "invalid_request", "found 311 at position 1"),
    "negative id": (COMPLETIONS, {"prompt": [-1]}, 400, "prompt", "invalid_request", "found -1"),
    "a huge id": (COMPLETIONS, {"prompt": [10**400]}, 400, "prompt", "invalid_request", "an integer of 1329 bits"),
    "65 prompts": (COMPLETIONS, {"prompt": [[5]] * 65}, 400, "prompt", "invalid_request", "found 65"),
    "prompt as long as the context": (
        COMPLETIONS, {"prompt": [5] * 128}, 400, "prompt", "context_length_exceeded", "at most 127 tokens",
    ),
    "prompt and max_tokens too long": (
        COMPLETIONS, {"prompt": [5] * 100, "max_tokens": 29}, 400, "max_tokens", "context_length_exceeded", "at most 28",
    ),
    "long conversation": (
        CHAT, {"messages": [{"role": "user", "content": "a b" * 100}]}, 400, "prompt", "context_length_exceeded", "127",
    ),
    "max_tokens 0": (CHAT, {"messages": USER, "max_tokens": 0}, 400, "max_tokens", "invalid_request", "found 0"),
    "max_tokens negative": (CHAT, {"messages": USER, "max_tokens": -3}, 400, "max_tokens", "invalid_request", "-3"),
    "max_tokens text": (CHAT, {"messages": USER, "max_tokens": "3"}, 400, "max_tokens", "invalid_request", "'3'"),
    "max_tokens fraction": (CHAT, {"messages": USER, "max_tokens": 1.5}, 400, "max_tokens", "invalid_request", "1.5"),
    "max_tokens true": (CHAT, {"messages": USER, "max_tokens": True}, 400, "max_tokens", "invalid_request", "True"),
    "temperature negative": (
        CHAT, {"messages": USER, "temperature": -1}, 400, "temperature", "invalid_request", "found -1",
    ),
    "temperature text": (CHAT, {"messages": USER, "temperature": "hot"}, 400, "temperature", "invalid_request", "hot"),
    "top_p 0": (CHAT, {"messages": USER, "top_p": 0}, 400, "top_p", "invalid_request", "(0, 1]"),
    "top_k negative": (CHAT, {"messages": USER, "top_k": -2}, 400, "top_k", "invalid_request", "-2"),
    "min_p 2": (CHAT, {"messages": USER, "min_p": 2}, 400, "min_p", "invalid_request", "[0, 1]"),
    "frequency_penalty 3": (
        CHAT, {"messages": USER, "frequency_penalty": 3}, 400, "frequency_penalty", "invalid_request", "[-2, 2]",
    ),
    "seed of 65 bits": (CHAT, {"messages": USER, "seed": 2**64}, 400, "seed", "invalid_request", "64-bit"),
    "unknown model": (CHAT, {"messages": USER, "model": "gpt-9"}, 404, "model", "model_not_found", "'tiny'"),
    "unknown role": (
        CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages.0.role", "invalid_request", "wizard",
    ),
    "no role": (CHAT, {"messages": [{"content": "a"}]}, 400, "messages.0.role", "invalid_request", "None"),
    "no messages": (CHAT, {"messages": []}, 400, "messages", "invalid_request", "at least one message"),
    "messages text": (CHAT, {"messages": "hi"}, 400, "messages", "invalid_request", "a valid list"),
    "a message that is text": (CHAT, {"messages": ["hi"]}, 400, "messages.0", "invalid_request", "'hi'"),
    "content number": (
        CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content", "invalid_request", "found 3",
    ),
    "an image": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400, "messages.0.content.0", "invalid_request", "image_url",
    ),
    "tool calls": (
        CHAT,
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        400, "messages.0.tool_calls", "invalid_request", "not supported",
    ),
    "1000 stop texts": (CHAT, {"messages": USER, "stop": ["a"] * 1000}, 400, "stop", "invalid_request", "found 1000"),
    "an empty stop text": (CHAT, {"messages": USER, "stop": ""}, 400, "stop", "invalid_request", "1 to 256"),
    "a long stop text": (CHAT, {"messages": USER, "stop": ["a" * 257]}, 400, "stop", "invalid_request", "257"),
    "a stop that is a number": (CHAT, {"messages": USER, "stop": 3}, 400, "stop", "invalid_request", "a valid list"),
    "stop id out of range": (
        CHAT, {"messages": USER, "stop_token_ids": [311]}, 400, "stop_token_ids", "invalid_request", "[0, 311)",
    ),
    "65 stop ids": (CHAT, {"messages": USER, "stop_token_ids": [5] * 65}, 400, "stop_token_ids", "invalid_request", "65"),
    "n 0": (CHAT, {"messages": USER, "n": 0}, 400, "n", "invalid_request", "1 to 16"),
    "n 17": (CHAT, {"messages": USER, "n": 17}, 400, "n", "invalid_request", "1 to 16"),
    "too many sequences": (COMPLETIONS, {"prompt": [[5]] * 20, "n": 16}, 400, "n", "invalid_request", "320"),
    "logprobs 21": (COMPLETIONS, {"prompt": [5], "logprobs": 21}, 400, "logprobs", "invalid_request", "0 to 20"),
    "logprobs negative": (COMPLETIONS, {"prompt": [5], "logprobs": -1}, 400, "logprobs", "invalid_request", "0 to 20"),
    "logprobs true for completions": (
        COMPLETIONS, {"prompt": [5], "logprobs": True}, 400, "logprobs", "invalid_request", "a valid integer",
    ),
    "top_logprobs alone": (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "top_logprobs", "invalid_request", "logprobs"),
    "top_logprobs 21": (
        CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, 400, "logprobs", "invalid_request", "0 to 20",
    ),
    "stream_options alone": (
        CHAT, {"messages": USER, "stream_options": {}}, 400, "stream_options", "invalid_request", "set stream to true",
    ),
    "tools": (CHAT, {"messages": USER, "tools": [{"type": "function"}]}, 400, "tools", "invalid_request", "not supported"),
    "response_format": (
        CHAT, {"messages": USER, "response_format": {"type": "json_object"}},
        400, "response_format", "invalid_request", "not supported",
    ),
    "suffix": (COMPLETIONS, {"prompt": [5], "suffix": "a"}, 400, "suffix", "invalid_request", "not supported"),
    "best_of": (COMPLETIONS, {"prompt": [5], "best_of": 2}, 400, "best_of", "invalid_request", "not supported"),
    "logit_bias": (COMPLETIONS, {"prompt": [5], "logit_bias": {"5": 1}}, 400, "logit_bias", "invalid_request", "not"),
}  # fmt: skip

MALFORMED = {
    "nothing": b"",
    "half": b'{"prompt": [5',
    "not an object": b"[1, 2]",
    "not UTF-8": b'{"prompt": "\xff"}',
    "NaN": b'{"prompt": [5], "temperature": NaN}',
    "Infinity": b'{"prompt": [5], "temperature": -Infinity}',
    "too deep": b'{"prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    "a number of 5000 digits": b'{"prompt": [5], "seed": ' + b"9" * 5000 + b"}",
}


def post(door, path, body):
    """Send raw bytes, or JSON, and return (status, headers, parsed body)."""
    connection = http.client.HTTPConnection(door.http_address, timeout=30)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.status, response.headers, json.loads(response.read())
    connection.close()
    return answer


def requests_counted(door, **labels) -> float:
    registry = door.service.metrics.registry
    return registry.get_sample_value("herd_requests_total", labels) or 0.0


@pytest.fixture(scope="module")
def refusing_door(text_engine_door):
    """A front door that nothing wrong gets through, over a real engine."""
    return text_engine_door


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_what_to_do(refusing_door, case):
    path, body, status, param, code, words = WRONG[case]
    found, _, answer = post(refusing_door, path, body)
    error = answer["error"]
    assert (found, error["param"], error["code"], error["type"]) == (status, param, code, "invalid_request_error")
    assert words in error["message"]
    assert len(error["message"]) < 500
    assert refusing_door.service.admission.num_sequences == 0


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_a_400(refusing_door, case):
    status, _, answer = post(refusing_door, COMPLETIONS, MALFORMED[case])
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith("body: expected a JSON object")


def test_a_number_too_large_for_a_float_is_refused(refusing_door):
    status, _, answer = post(refusing_door, COMPLETIONS, b'{"prompt": [5], "temperature": 1e999}')
    assert (status, answer["error"]["param"]) == (400, "temperature")


def test_values_that_utf8_cannot_carry_come_back_escaped(refusing_door):
    status, _, answer = post(refusing_door, COMPLETIONS, rb'{"prompt": [5], "model": "\ud800"}')
    assert status in (400, 404)
    assert answer["error"]["param"] == "model"


def test_fields_nobody_knows_are_ignored_and_neutral_ones_accepted(door):
    neutral = {"tools": None, "logit_bias": {}, "best_of": 2, "response_format": {"type": "text"}, "from_2031": 1}
    status, _, _ = post(door, CHAT, {"messages": USER, "n": 2, **neutral})
    assert status == 200


def test_text_for_a_model_without_a_tokenizer_is_told_to_send_ids(id_engine_door):
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, {"messages": USER})):
        status, _, answer = post(id_engine_door, path, body)
        assert status == 400
        assert "list of token ids" in answer["error"]["message"]
    status, _, answer = post(id_engine_door, COMPLETIONS, {"prompt": [5], "stop": "a"})
    assert (status, answer["error"]["param"]) == (400, "stop")


def test_the_openai_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="tiny", prompt=[5], max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=[5])


def test_a_body_over_the_limit_is_a_413_and_its_sender_reads_it(door):
    status, _, answer = post(door, COMPLETIONS, b" " * 100_001)
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert "at most 100000 bytes, found 100001" in answer["error"]["message"]


def test_a_body_of_100_mb_is_a_413(door):
    status, _, _ = post(door, COMPLETIONS, b" " * 100_000_000)
    assert status == 413


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_long(door):
    with socket.create_connection(("127.0.0.1", int(door.http_address.split(":")[1])), timeout=30) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):  # the body never ends; the answer comes all the same
            client.sendall(b"9c40\r\n" + b" " * 40_000 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_the_limit_is_read(door):
    body = json.dumps({"prompt": [5]}).encode()
    status, _, _ = post(door, COMPLETIONS, body + b" " * (100_000 - len(body)))
    assert status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_full_router_is_a_429_with_retry_after(door, router, stream):
    router.script = fails(Overloaded("expected room, found none; retry", retry_after_ms=2500))
    status, headers, answer = post(door, COMPLETIONS, {"prompt": [5], "stream": stream})
    assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")


def test_a_full_front_door_is_a_429(door, router):
    status, headers, _ = post(door, COMPLETIONS, {"prompt": [[5], [6]], "n": 16})
    assert status == 200
    with door.service.admission.admit(32, 1):
        status, headers, _ = post(door, COMPLETIONS, {"prompt": [5]})
    assert (status, headers["retry-after"]) == (429, "1")


def test_an_error_of_one_choice_ends_the_others(door, router):
    say, fail = router.script, fails(ReplicaUnavailable("gone"), 72)
    router.script = lambda request: (fail if request.request_id.endswith("-1") else say)(request)
    status, _, answer = post(door, COMPLETIONS, {"prompt": [5], "n": 3})
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert router.wait_until_open(0)


def test_an_error_inside_a_stream_is_its_last_event(client, router, door):
    router.script = fails(NoReplica("nobody holds expert 3"), 72, 101)
    texts = []
    with pytest.raises(openai.APIError, match="nobody holds expert 3"):
        for chunk in client.completions.create(model="tiny", prompt=[5], stream=True):
            texts.append(chunk.choices[0].text)
    assert texts == ["H", "e"]
    assert router.wait_until_open(0)


def test_a_bug_is_a_500_that_does_not_tell_secrets(door, router, caplog):
    router.script = fails(ValueError("password 123"))
    for stream in (False, True):
        status, _, answer = post(door, COMPLETIONS, {"prompt": [5], "stream": stream})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "123" not in answer["error"]["message"]
    router.script = fails(InternalError("NaN in the logits"))
    assert post(door, COMPLETIONS, {"prompt": [5]})[0] == 500


def test_unknown_paths_and_methods_are_error_objects(door):
    status, _, answer = post(door, "/v2/nothing", {})
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    status, _, answer = post(door, "/v1/models", {})
    assert status == 405


def test_requests_are_counted_by_code(text_model, router):
    with LiveFrontDoor(InferenceService(text_model, router)) as door:
        post(door, COMPLETIONS, {"prompt": [5]})
        post(door, COMPLETIONS, {"prompt": []})
        with openai_client(door) as client:
            list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
            router.script = fails(NoReplica("gone"), 72)
            with pytest.raises(openai.APIError):
                list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
    counted = [("completions", "200"), ("completions", "400"), ("chat", "200"), ("chat", "503")]
    assert [requests_counted(door, api=api, code=code) for api, code in counted] == [1, 1, 1, 1]
