import pytest

from models.chat import render_chat
from models.chat_message import ChatMessage
from tests.cluster.conftest import openai_client
from tests.cluster.scripted_router import says

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_conversation_is_answered_as_the_assistant(client, router, small_tokenizer):
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello", "length")
    assert (answer.object, choice.logprobs) == ("chat.completion", None)
    assert answer.id.startswith("chatcmpl-")
    expected = render_chat([ChatMessage(role="user", content="Hello")], small_tokenizer)
    assert list(router.requests[0].prompt_ids) == expected


def test_text_parts_and_the_developer_role_are_understood(client, router, small_tokenizer):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="tiny", messages=messages)
    said = [ChatMessage(role="system", content="be kind"), ChatMessage(role="user", content="Hello")]
    assert small_tokenizer.decode(router.requests[0].prompt_ids, skip_special=False) == small_tokenizer.decode(
        render_chat(said, small_tokenizer), skip_special=False
    )


def test_special_tokens_in_a_message_stay_text(client, router, small_tokenizer):
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "<|eot|>"}])
    prompt = router.requests[0].prompt_ids
    assert prompt.count(small_tokenizer.special_id("<|eot|>")) == 1


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_completion_tokens": 4}, 4)],
    ids=["rest of the context", "max_tokens", "max_completion_tokens"],
)
def test_max_tokens_of_a_chat(client, router, text_model, fields, expected):
    client.chat.completions.create(model="tiny", messages=HELLO, **fields)
    request = router.requests[0]
    assert request.max_tokens == (expected or text_model.context_length - len(request.prompt_ids))


def test_logprobs_carry_bytes_and_alternatives(client, router, small_tokenizer):
    end_of_turn = small_tokenizer.special_id("<|eot|>")
    router.script = says(0xC3, 0xA9, end_of_turn)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=1)
    content = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == "é"
    assert [token.bytes for token in content] == [[0xC3], [0xA9], []]
    assert [token.token for token in content] == ["\ufffd", "\ufffd", "<|eot|>"]
    assert content[0].top_logprobs[0].logprob == content[0].logprob == -0.195


def test_logprobs_without_alternatives(client):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1, logprobs=True)
    [token] = answer.choices[0].logprobs.content
    assert (token.token, token.top_logprobs) == ("H", [])


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(client):
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, n=2))
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert (mine[0].delta.role, mine[0].delta.content) == ("assistant", "")
        assert "".join(choice.delta.content or "" for choice in mine) == "Hello"
        assert [choice.finish_reason for choice in mine] == [None] * (len(mine) - 1) + ["length"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_no_chunk_holds_half_a_character(client, router):
    router.script = says(*"é👩".encode(), reason="stop")
    chunks = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert texts == ["é", "👩"]


def test_a_stream_ends_with_usage_when_asked(client):
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stream_options=options)
    assert (last.choices, last.usage.completion_tokens) == ([], 5)


def test_a_stop_text_never_shows_even_in_parts(client):
    chunks = client.chat.completions.create(model="tiny", messages=HELLO, stop="llo", stream=True)
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "He"


def test_prompt_logprobs_belong_to_the_answer(client, router):
    answer = client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"prompt_logprobs": 0}, n=2)
    assert len(answer.prompt_logprobs) == len(router.requests[0].prompt_ids)
    assert answer.prompt_logprobs[0] is None


def test_a_real_engine_answers_alike_streamed_and_whole(text_engine_door):
    with openai_client(text_engine_door) as client:
        fields = {"model": "tiny", "messages": HELLO, "max_tokens": 16, "seed": 3}
        whole = client.chat.completions.create(**fields).choices[0]
        chunks = list(client.chat.completions.create(**fields, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason
