import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.openai.bodies import ChatBody, CompletionsBody
from cluster.openai.chat import ChatEndpoint
from cluster.openai.completions import CompletionsEndpoint
from cluster.request_id import request_id
from cluster.validation import RequestFields, check_request, sequences, shown
from protos.errors import ContextTooLong, InvalidRequest, RequestError

NUMBERS = st.none() | st.integers(-3, 30) | st.sampled_from([2**70, -(2**70), 10**5000])
REALS = st.none() | st.floats() | st.integers(-3, 3)
IDS = st.lists(st.integers(-1, 320), max_size=3).map(tuple)
FIELDS = st.builds(
    RequestFields,
    prompts=st.lists(IDS, max_size=3),
    temperature=REALS,
    top_k=NUMBERS,
    top_p=REALS,
    min_p=REALS,
    repetition_penalty=REALS,
    presence_penalty=REALS,
    frequency_penalty=REALS,
    seed=NUMBERS,
    max_tokens=NUMBERS,
    stop=st.lists(st.text(max_size=3), max_size=3),
    stop_ids=IDS,
    logprobs=NUMBERS,
    prompt_logprobs=NUMBERS,
    priority=st.integers(-(2**31), 2**31 - 1) | st.just(2**31),
    num_choices=st.integers(-1, 20) | st.just(10**5000),
)
GOOD = RequestFields(prompts=[(5, 6), (7,)], num_choices=2, seed=3, prompt_logprobs=0, stop=["a", "b", "a"])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 400) | st.floats() | st.text(max_size=5),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(
    sorted(CompletionsBody.model_fields.keys() | ChatBody.model_fields.keys() | {"tools", "best_of"})
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": JSON}), max_size=2
)


def accepted(check):
    """Return what a check returns; None when it refuses, and then it has to say why in few words."""
    try:
        return check()
    except RequestError as refused:
        error = refused
    assert 20 < len(error.message) < 1000
    return None


@given(FIELDS)
def test_any_fields_are_checked_or_refused_with_a_reason(text_model, fields):
    request = accepted(lambda: check_request(fields, text_model, "id"))
    if request is None:
        return
    for generation in sequences(request, timeout_s=1):
        assert 0 < len(generation.prompt_ids) < len(generation.prompt_ids) + generation.max_tokens <= 128
        assert all(0 <= token < text_model.config.vocab_size for token in generation.prompt_ids)


def test_a_number_too_long_to_be_written_is_refused_by_its_length(text_model):
    fields = RequestFields(prompts=[(0,)], max_tokens=10**5000)
    with pytest.raises(ContextTooLong, match="found an integer of 16610 bits"):
        check_request(fields, text_model, "id")


@given(body=st.dictionaries(NAMES, JSON), prompt=JSON, messages=MESSAGES | JSON)
def test_any_json_is_checked_or_refused_with_a_reason(text_model, body, prompt, messages):
    for endpoint, required in ((CompletionsEndpoint(), {"prompt": prompt}), (ChatEndpoint(), {"messages": messages})):
        data = json.dumps({**body, **required}).encode()
        answer = accepted(lambda: endpoint.parse(data, text_model, request_id()))  # noqa: B023  called at once
        assert answer is None or answer.request.num_sequences >= 1


def test_sequences_have_names_of_their_own_and_one_scores_the_prompt(text_model):
    cut = sequences(check_request(GOOD, text_model, "id"), timeout_s=2)
    assert [each.request_id for each in cut] == ["id-0", "id-1", "id-2", "id-3"]
    assert [each.prompt_ids for each in cut] == [(5, 6), (5, 6), (7,), (7,)]
    assert [each.prompt_logprobs for each in cut] == [0, None, 0, None]
    assert {each.timeout_s for each in cut} == {2}


def test_repeated_stop_texts_count_once(text_model):
    assert check_request(GOOD, text_model, "id").stop == ("a", "b")


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        *((-1, 2**64 - 1), (-(2**63), 2**63), (0, 0), (2**64 - 1, 2**64 - 1)),
        # As JavaScript writes -(2**63) and 2**64.
        *((-9223372036854776000, 2**63 - 192), (18446744073709552000, 384)),
    ],
)
def test_a_signed_seed_is_the_unsigned_one_of_the_same_bits(text_model, seed, expected):
    request = check_request(RequestFields(prompts=[(5,)], seed=seed), text_model, "id")
    assert request.sampling.seed == expected


def test_every_wrong_sampling_field_is_named(text_model):
    with pytest.raises(InvalidRequest) as refused:
        check_request(RequestFields(prompts=[(5,)], temperature=-1, top_p=2), text_model, "id")
    assert "temperature:" in refused.value.message
    assert "top_p:" in refused.value.message


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), ("a", "'a'"), ("a" * 81, "a text of length 81"), ([1] * 81, "a list of length 81"), (True, "True")],
)
def test_a_value_is_shown_short(value, text):
    assert shown(value) == text


@given(JSON | st.integers())
def test_nothing_is_shown_long(value):
    assert len(shown([value] * 50)) < 100
