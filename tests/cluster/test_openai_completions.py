import pytest

from cluster.service import InferenceService
from tests.cluster.conftest import openai_client
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import says


def test_a_text_prompt_is_continued(client, router, small_tokenizer):
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=10)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.logprobs) == ("Hello", "length", None)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert (answer.model, answer.system_fingerprint) == ("tiny", "f00d")
    assert router.requests[0].prompt_ids == (small_tokenizer.bos_id, *small_tokenizer.encode("the"))


def test_usage_counts_each_prompt_once_and_all_choices(client):
    usage = client.completions.create(model="tiny", prompt=[5, 6, 7], n=3, max_tokens=10).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 15, 18)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [([5, 6], [(5, 6)]), ([[5], [6, 7]], [(5,), (6, 7)])],
    ids=["token ids", "lists of token ids"],
)
def test_token_ids_are_continued_as_they_are(client, router, prompt, expected):
    client.completions.create(model="tiny", prompt=prompt)
    assert sorted(request.prompt_ids for request in router.requests) == expected


def test_several_prompts_and_choices_are_numbered_prompt_first(client, router):
    router.script = lambda request: says(request.prompt_ids[0])(request)
    answer = client.completions.create(model="tiny", prompt=[[65], [66]], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(0, "A"), (1, "A"), (2, "B"), (3, "B")]


def test_choices_get_seeds_of_their_own_and_prompts_do_not(client, router):
    client.completions.create(model="tiny", prompt=[[5], [6]], n=2, seed=7)
    seeds = {request.request_id.rsplit("-", 1)[1]: request.sampling.seed for request in router.requests}
    assert seeds["0"] == seeds["2"] == 7
    assert seeds["1"] == seeds["3"] != 7


def test_a_request_without_a_seed_gets_a_random_one(client, router):
    for _ in range(2):
        client.completions.create(model="tiny", prompt=[5])
    first, second = (request.sampling.seed for request in router.requests)
    assert first != second


def test_every_sampling_field_reaches_the_router(client, router):
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.5, "stop_token_ids": [9], "ignore_eos": True}
    client.completions.create(
        model="tiny",
        prompt=[5],
        max_tokens=3,
        temperature=0.5,
        top_p=0.9,
        presence_penalty=0.25,
        frequency_penalty=-0.25,
        seed=-1,
        extra_body=extra,
    )
    request = router.requests[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 5, 0.1)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.5, 0.25, -0.25)
    assert sampling.seed == 2**64 - 1
    assert (request.max_tokens, request.stop_ids) == (3, {9})


def test_the_models_end_tokens_stop_unless_told_otherwise(client, router, text_model):
    client.completions.create(model="tiny", prompt=[5])
    client.completions.create(model="tiny", prompt=[5], extra_body={"ignore_eos": True})
    assert [request.stop_ids for request in router.requests] == [set(text_model.config.eos_ids), set()]


def test_max_tokens_is_16_when_left_out_and_less_where_the_context_ends(client, router):
    client.completions.create(model="tiny", prompt=[5])
    client.completions.create(model="tiny", prompt=[5] * 120)
    assert [request.max_tokens for request in router.requests] == [16, 8]


def test_logprobs_name_tokens_and_alternatives(client):
    answer = client.completions.create(model="tiny", prompt=[5], max_tokens=2, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens == ["H", "e"]
    assert logprobs.token_logprobs == [-0.072, -0.101]
    assert logprobs.text_offset == [0, 1]
    assert logprobs.top_logprobs[0] == {"H": -0.072, "I": -1.072}


def test_logprobs_of_zero_report_the_token_alone(client):
    logprobs = client.completions.create(model="tiny", prompt=[5], max_tokens=1, logprobs=0).choices[0].logprobs
    assert logprobs.top_logprobs == [{"H": -0.072}]


def test_echo_puts_the_prompt_and_its_logprobs_first(client, small_tokenizer):
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=1, echo=True, logprobs=1)
    choice = answer.choices[0]
    assert choice.text == "theH"
    assert choice.logprobs.tokens == ["<|begin_of_text|>", "the", "H"]
    assert choice.logprobs.text_offset == [0, 0, 3]
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.top_logprobs[0] is None
    [the] = small_tokenizer.encode("the")
    assert choice.logprobs.token_logprobs[1] == -the / 1000


def test_echo_of_token_ids_is_their_text(client):
    assert client.completions.create(model="tiny", prompt=[65, 66], max_tokens=1, echo=True).choices[0].text == "ABH"


def test_prompt_logprobs_are_asked_of_one_choice_and_given_to_all(client, router):
    answer = client.completions.create(model="tiny", prompt=[65, 66], n=2, extra_body={"prompt_logprobs": 1})
    assert sorted(request.prompt_logprobs is not None for request in router.requests) == [False, True]
    expected = [None, {"66": {"logprob": -0.066, "rank": 1, "decoded_token": "B"}}]
    assert [choice.prompt_logprobs for choice in answer.choices] == [expected, expected]


def test_streamed_text_is_the_whole_text(client):
    chunks = list(client.completions.create(model="tiny", prompt=[5], max_tokens=10, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_streamed_logprobs_are_those_of_the_whole_answer(client):
    def ask(stream):
        return client.completions.create(
            model="tiny", prompt="the", max_tokens=4, echo=True, logprobs=1, stream=stream, n=2
        )

    whole = {choice.index: choice.logprobs for choice in ask(False).choices}
    tokens, offsets = {0: [], 1: []}, {0: [], 1: []}
    for chunk in ask(True):
        [choice] = chunk.choices
        tokens[choice.index] += choice.logprobs.tokens
        offsets[choice.index] += choice.logprobs.text_offset
    assert tokens == {index: logprobs.tokens for index, logprobs in whole.items()}
    assert offsets == {index: logprobs.text_offset for index, logprobs in whole.items()}


def test_a_stream_ends_with_usage_when_asked(client):
    options = {"include_usage": True}
    *chunks, last = client.completions.create(model="tiny", prompt=[5], stream=True, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 5)


def test_a_stop_text_ends_the_choice_and_closes_its_sequence(client, router):
    answer = client.completions.create(model="tiny", prompt=[5], max_tokens=10, stop=["lo", "zz"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hel", "stop")
    assert router.wait_until_open(0)


def test_token_ids_come_back_when_asked(client):
    answer = client.completions.create(model="tiny", prompt=[5], max_tokens=2, extra_body={"return_token_ids": True})
    assert answer.choices[0].token_ids == [72, 101]


def test_without_a_tokenizer_ids_stand_for_text(id_model, router):
    with LiveFrontDoor(InferenceService(id_model, router)) as door, openai_client(door) as client:
        answer = client.completions.create(model="tiny", prompt=[5], max_tokens=2, logprobs=1)
        chunks = list(client.completions.create(model="tiny", prompt=[5], max_tokens=2, stream=True))
    choice = answer.choices[0]
    assert (choice.text, choice.token_ids) == ("", [72, 101])
    assert choice.logprobs.tokens == ["token_id:72", "token_id:101"]
    assert choice.logprobs.top_logprobs[0] == {"token_id:72": -0.072}
    assert [token for chunk in chunks for token in chunk.choices[0].token_ids] == [72, 101]


@pytest.mark.parametrize("door_name", ["text_engine_door", "id_engine_door"])
def test_a_real_engine_answers_alike_streamed_and_whole(request, door_name):
    with openai_client(request.getfixturevalue(door_name)) as client:
        fields = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 12, "seed": 3, "n": 3, "logprobs": 2}
        whole = client.completions.create(**fields, extra_body={"return_token_ids": True})
        ids = {0: [], 1: [], 2: []}
        logprobs = {0: [], 1: [], 2: []}
        for chunk in client.completions.create(**fields, stream=True, extra_body={"return_token_ids": True}):
            ids[chunk.choices[0].index] += chunk.choices[0].token_ids
            logprobs[chunk.choices[0].index] += chunk.choices[0].logprobs.token_logprobs
    assert {choice.index: choice.token_ids for choice in whole.choices} == ids
    for choice in whole.choices:
        assert choice.logprobs.token_logprobs == pytest.approx(logprobs[choice.index], abs=1e-4)
    assert len({tuple(each) for each in ids.values()}) == 3
