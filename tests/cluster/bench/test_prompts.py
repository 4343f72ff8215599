import pytest

from cluster.bench.prompts import WORDS, GivenTexts, Stream, TokenPrompts, WordPrompts


def prompts(shared_prefix: int = 0, seed: int = 0) -> TokenPrompts:
    return TokenPrompts(100, 999, shared_prefix, seed)


def make(source, index: int, length: int, hash_ids=None, stream: Stream = Stream.MEASURED):
    return source.make(index, length, hash_ids, stream)


def test_prompts_have_exactly_the_length_asked_for_and_ids_of_the_range():
    for length in (1, 2, 511, 512, 513):
        found = make(prompts(), 0, length)
        assert len(found) == length
        assert set(found) <= set(range(100, 1000))


def test_every_prompt_is_another_and_the_same_one_again_when_asked_again():
    source = prompts()
    assert make(source, 0, 64) != make(source, 1, 64)
    assert make(source, 1, 64) == make(prompts(), 1, 64)
    assert make(source, 1, 64) != make(prompts(seed=1), 1, 64)
    assert make(source, 1, 64) != make(source, 1, 64, stream=Stream.WARMUP)


def test_a_shared_prefix_is_alike_in_all_prompts_and_nothing_after_it():
    source = prompts(shared_prefix=32)
    one, other, warm = make(source, 0, 64), make(source, 1, 64), make(source, 0, 64, stream=Stream.WARMUP)
    assert one[:32] == other[:32] == warm[:32]
    assert one[32:] != other[32:]


def test_a_prompt_shorter_than_the_shared_prefix_still_ends_in_a_token_of_its_own():
    source = prompts(shared_prefix=32)
    found = [make(source, index, 8) for index in range(20)]
    assert len({tuple(each[:7]) for each in found}) == 1
    assert len({each[7] for each in found}) > 1


def test_equal_hash_ids_are_equal_blocks_and_others_are_not():
    source = prompts()
    one, other = make(source, 0, 1300, (7, 8, 9)), make(source, 1, 1400, (7, 5, 9))
    assert (len(one), len(other)) == (1300, 1400)
    assert one[:512] == other[:512]
    assert one[512:1024] != other[512:1024]
    assert one[1024:1300] == other[1024:1300]


@pytest.mark.parametrize("hash_ids", [None, (3, 4)])
def test_words_are_as_many_as_tokens_are_asked_for(hash_ids):
    found = make(WordPrompts(0, 0), 0, 600, hash_ids)
    assert len(found.split(" ")) == 600
    assert set(found.split(" ")) <= set(WORDS)


def test_given_texts_are_sent_in_turn():
    source = GivenTexts(("a", "b"))
    assert [make(source, index, 99) for index in range(3)] == ["a", "b", "a"]
