import json
import socket

import openai
import pytest

from cluster.service import InferenceService
from protos.errors import InternalError, NoReplica, Overloaded
from tests.cluster.conftest import openai_client
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import fails

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "Hello"}]
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}

# What a completions request with a good prompt has besides: (fields, param, words of the message).
WRONG_COMPLETIONS = {
    "empty text": ({"prompt": ""}, "prompt", "at least one"),
    "no token ids": ({"prompt": []}, "prompt", "at least one"),
    "an empty list among prompts": ({"prompt": [[5], []]}, "prompt", "found none"),
    "null prompt": ({"prompt": None}, "prompt", "found None"),
    "text among ids": ({"prompt": [[1, "a"]]}, "prompt", "'a'"),
    "text among prompts of ids": ({"prompt": [[1], "a"]}, "prompt", "'a'"),
    "null among ids": ({"prompt": [1, None]}, "prompt", "None"),
    "true among ids": ({"prompt": [1, True]}, "prompt", "True"),
    "a fraction among ids": ({"prompt": [1, 2.5]}, "prompt", "2.5"),
    "id too high": ({"prompt": [5, 311]}, "prompt", "in [0, 311), found 311 at position 1"),
    "negative id": ({"prompt": [-1]}, "prompt", "found -1"),
    "a huge id": ({"prompt": [10**400]}, "prompt", "an integer of 1329 bits"),
    "65 prompts": ({"prompt": [[5]] * 65}, "prompt", "found 65"),
    "too many sequences": ({"prompt": [[5]] * 20, "n": 16}, "n", "found 320"),
    "logprobs 21": ({"logprobs": 21}, "logprobs", "0 to 20"),
    "logprobs negative": ({"logprobs": -1}, "logprobs", "0 to 20"),
    "logprobs true": ({"logprobs": True}, "logprobs", "a valid integer"),
    "prompt_logprobs 21": ({"prompt_logprobs": 21}, "prompt_logprobs", "0 to 20"),
    "suffix": ({"suffix": "a"}, "suffix", "not supported"),
    "best_of": ({"best_of": 2}, "best_of", "not supported"),
    "logit_bias": ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
}
# The same for a chat request.
WRONG_CHATS = {
    "no messages": ({"messages": []}, "messages", "at least one message"),
    "messages text": ({"messages": "hi"}, "messages", "a valid list"),
    "a message that is text": ({"messages": ["hi"]}, "messages.0", "found 'hi'"),
    "unknown role": ({"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role", "found 'wizard'"),
    "a long role": ({"messages": [{"role": "a" * 9999, "content": "a"}]}, "messages.0.role", "a text of length 9999"),
    "no role": ({"messages": [{"content": "a"}]}, "messages.0.role", "found None"),
    "content number": ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "found 3"),
    "an image": ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0", "image_url"),
    "tool calls": ({"messages": [{"role": "user", "tool_calls": [1]}]}, "messages.0.tool_calls", "not supported"),
    "tool calls of zero": ({"messages": [{"role": "user", "tool_calls": 0}]}, "messages.0.tool_calls", "not supported"),
    "no max_tokens beside another": ({"max_tokens": 0, "max_completion_tokens": 1}, "max_tokens", "at least 1"),
    "max_tokens 0": ({"max_tokens": 0}, "max_tokens", "at least 1, found 0"),
    "max_tokens negative": ({"max_tokens": -3}, "max_tokens", "found -3"),
    "max_tokens text": ({"max_tokens": "3"}, "max_tokens", "found '3'"),
    "max_tokens fraction": ({"max_tokens": 1.5}, "max_tokens", "found 1.5"),
    "max_tokens true": ({"max_tokens": True}, "max_tokens", "found True"),
    "temperature negative": ({"temperature": -1}, "temperature", "in [0, 100], found -1"),
    "temperature text": ({"temperature": "hot"}, "temperature", "found 'hot'"),
    "top_p 0": ({"top_p": 0}, "top_p", "(0, 1]"),
    "top_k negative": ({"top_k": -2}, "top_k", "found -2"),
    "min_p 2": ({"min_p": 2}, "min_p", "[0, 1]"),
    "frequency_penalty 3": ({"frequency_penalty": 3}, "frequency_penalty", "[-2, 2]"),
    "seed of 66 bits": ({"seed": 2**65}, "seed", "64-bit"),
    "1000 stop texts": ({"stop": ["a"] * 1000}, "stop", "at most 16 texts, found 1000"),
    "an empty stop text": ({"stop": ""}, "stop", "1 to 256"),
    "a long stop text": ({"stop": ["a" * 257]}, "stop", "found one of 257"),
    "a stop that is a number": ({"stop": 3}, "stop", "a valid list"),
    "stop id out of range": ({"stop_token_ids": [311]}, "stop_token_ids", "[0, 311)"),
    "65 stop ids": ({"stop_token_ids": [5] * 65}, "stop_token_ids", "found 65"),
    "n 0": ({"n": 0}, "n", "1 to 16"),
    "n 17": ({"n": 17}, "n", "1 to 16"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
    "top_logprobs 21": ({"logprobs": True, "top_logprobs": 21}, "logprobs", "0 to 20"),
    "stream_options alone": ({"stream_options": {}}, "stream_options", "set stream to true"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    "response_format": ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
}
WRONG = {
    **{f"completions, {name}": (COMPLETIONS, {"prompt": [5]}, *case) for name, case in WRONG_COMPLETIONS.items()},
    **{f"chat, {name}": (CHAT, {"messages": USER}, *case) for name, case in WRONG_CHATS.items()},
}
TOO_LONG = {
    "prompt as long as the context": (COMPLETIONS, {"prompt": [5] * 128}, "at most 127 tokens"),
    "prompt and max_tokens": (COMPLETIONS, {"prompt": [5] * 100, "max_tokens": 29}, "at most 28"),
    "conversation": (CHAT, {"messages": [{"role": "user", "content": "a b" * 100}]}, "at most 127 tokens"),
}

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


def requests_counted(door, **labels) -> float:
    registry = door.service.metrics.registry
    return registry.get_sample_value("herd_requests_total", labels) or 0.0


@pytest.fixture(scope="module")
def refusing_door(text_engine_door):
    """A front door that nothing wrong gets through, over a real engine."""
    return text_engine_door


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_refused_with_what_to_do(refusing_door, case):
    path, base, fields, param, words = WRONG[case]
    status, _, answer = refusing_door.post(path, base | fields)
    error = answer["error"]
    assert (status, error["type"], error["code"]) == (400, "invalid_request_error", "invalid_request")
    assert error["param"] == param
    assert words in error["message"]
    assert len(error["message"]) < 500
    assert refusing_door.service.admission.num_sequences == 0


@pytest.mark.parametrize("case", TOO_LONG)
def test_what_does_not_fit_the_context_is_refused_with_the_numbers(refusing_door, case):
    path, body, words = TOO_LONG[case]
    status, _, answer = refusing_door.post(path, body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert words in answer["error"]["message"]


def test_another_model_is_a_404_that_names_the_right_one(refusing_door):
    status, _, answer = refusing_door.post(CHAT, {"messages": USER, "model": "gpt-9"})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")
    assert "expected model 'tiny'" in answer["error"]["message"]


def test_a_required_field_that_is_missing_is_named(refusing_door):
    for path, param in ((COMPLETIONS, "prompt"), (CHAT, "messages")):
        status, _, answer = refusing_door.post(path, {})
        assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_a_400(refusing_door, case):
    status, _, answer = refusing_door.post(COMPLETIONS, MALFORMED[case])
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert answer["error"]["message"].startswith("body: expected a JSON object")


def test_a_number_too_large_for_a_float_is_refused(refusing_door):
    status, _, answer = refusing_door.post(COMPLETIONS, b'{"prompt": [5], "temperature": 1e999}')
    assert (status, answer["error"]["param"]) == (400, "temperature")


def test_values_that_utf8_cannot_carry_come_back_escaped(refusing_door):
    status, _, answer = refusing_door.post(COMPLETIONS, rb'{"prompt": [5], "model": "\ud800"}')
    assert status in (400, 404)
    assert answer["error"]["param"] == "model"


def test_fields_nobody_knows_are_ignored_and_neutral_ones_accepted(door):
    neutral = {"tools": None, "logit_bias": {}, "best_of": 2, "response_format": {"type": "text"}, "from_2031": 1}
    status, _, _ = door.post(CHAT, {"messages": USER, "n": 2, **neutral})
    assert status == 200


def test_text_for_a_model_without_a_tokenizer_is_told_to_send_ids(id_engine_door):
    for path, body in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, {"messages": USER})):
        status, _, answer = id_engine_door.post(path, body)
        assert status == 400
        assert "list of token ids" in answer["error"]["message"]
    status, _, answer = id_engine_door.post(COMPLETIONS, {"prompt": [5], "stop": "a"})
    assert (status, answer["error"]["param"]) == (400, "stop")


def test_the_openai_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model="tiny", prompt=[5], max_tokens=0)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt=[5])


def test_a_body_over_the_limit_is_a_413_and_its_sender_reads_it(door):
    status, _, answer = door.post(COMPLETIONS, b" " * 100_001)
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert "at most 100000 bytes, found 100001" in answer["error"]["message"]


def test_a_body_of_100_mb_is_a_413(door):
    status, _, _ = door.post(COMPLETIONS, b" " * 100_000_000)
    assert status == 413


def test_a_client_that_asks_first_is_refused_without_sending(door):
    host, port = door.http_address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n"
        client.sendall(head.encode())
        received = b""
        while part := client.recv(1000):
            received += part
    assert received.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_long(door):
    with socket.create_connection(("127.0.0.1", int(door.http_address.split(":")[1])), timeout=30) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):  # the body never ends; the answer comes all the same
            client.sendall(b"9c40\r\n" + b" " * 40_000 + b"\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_exactly_the_limit_is_read(door):
    body = json.dumps({"prompt": [5]}).encode()
    status, _, _ = door.post(COMPLETIONS, body + b" " * (100_000 - len(body)))
    assert status == 200


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_full_router_is_a_429_with_retry_after(door, router, stream):
    router.script = fails(Overloaded("expected room, found none; retry", retry_after_ms=2500))
    status, headers, answer = door.post(COMPLETIONS, {"prompt": [5], "stream": stream})
    assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2500")


def test_a_full_front_door_is_a_429(door, router):
    status, headers, _ = door.post(COMPLETIONS, {"prompt": [[5], [6]], "n": 16})
    assert status == 200
    with door.service.admission.admit(32, 1):
        status, headers, _ = door.post(COMPLETIONS, {"prompt": [5]})
    assert (status, headers["retry-after"]) == (429, "1")


def test_an_error_of_one_choice_ends_the_others(door, router):
    say, fail = router.script, fails(NoReplica("nobody holds expert 3"), 72)
    router.script = lambda request: (fail if request.request_id.endswith("-1") else say)(request)
    status, _, answer = door.post(COMPLETIONS, {"prompt": [5], "n": 3})
    assert (status, answer["error"]["type"]) == (503, "server_error")
    assert router.wait_until_open(0)


def test_an_error_inside_a_stream_is_its_last_event(client, router, door):
    router.script = fails(NoReplica("nobody holds expert 3"), 72, 101)
    texts = []
    chunks = client.completions.create(model="tiny", prompt=[5], stream=True)
    with pytest.raises(openai.APIError, match="nobody holds expert 3"):
        texts.extend(chunk.choices[0].text for chunk in chunks)
    assert texts == ["H", "e"]
    assert router.wait_until_open(0)


def test_a_bug_is_a_500_that_does_not_tell_secrets(door, router, caplog):
    router.script = fails(ValueError("password 123"))
    for stream in (False, True):
        status, _, answer = door.post(COMPLETIONS, {"prompt": [5], "stream": stream})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert "123" not in answer["error"]["message"]
    router.script = fails(InternalError("NaN in the logits"))
    assert door.post(COMPLETIONS, {"prompt": [5]})[0] == 500


def test_unknown_paths_and_methods_are_error_objects(door):
    status, _, answer = door.post("/v2/nothing", {})
    assert (status, answer["error"]["type"]) == (404, "invalid_request_error")
    status, _, answer = door.post("/v1/models", {})
    assert status == 405


def test_requests_are_counted_by_code(text_model, router):
    with LiveFrontDoor(InferenceService(text_model, router)) as door:
        door.post(COMPLETIONS, {"prompt": [5]})
        door.post(COMPLETIONS, {"prompt": []})
        with openai_client(door) as client:
            list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
            router.script = fails(NoReplica("gone"), 72)
            with pytest.raises(openai.APIError):
                list(client.chat.completions.create(model="tiny", messages=USER, stream=True))
    counted = [("completions", "200"), ("completions", "400"), ("chat", "200"), ("chat", "503")]
    assert [requests_counted(door, api=api, code=code) for api, code in counted] == [1, 1, 1, 1]
