"""Block keys: equal exactly when all tokens up to the block's end are equal."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from router.paging.blocks import BlockChain, block_keys


def test_a_key_is_blake2b_of_the_parent_and_the_ids_in_little_endian():
    first = blake2b(b"\x01\0\0\0\x02\x01\0\0", digest_size=16).digest()
    second = blake2b(first + b"\x03\0\0\0\x04\0\0\0", digest_size=16).digest()
    assert block_keys([1, 258, 3, 4, 5], 2) == [first, second]


def test_what_does_not_fill_a_page_has_no_key():
    assert block_keys([1, 2, 3], 4) == []


def test_a_key_depends_on_every_token_before_it():
    assert block_keys([1, 2, 3, 4], 2)[0] == block_keys([1, 2, 9, 4], 2)[0]
    assert block_keys([1, 2, 3, 4], 2)[1] != block_keys([9, 2, 3, 4], 2)[1]


def test_the_same_tokens_at_another_place_have_another_key():
    first, second = block_keys([7, 7, 7, 7], 2)
    assert first != second


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.lists(st.integers(0, 9), max_size=8), st.integers(1, 5))
def test_a_chain_that_grows_in_steps_has_the_same_keys(ids, steps, page_tokens):
    chain, num_tokens = BlockChain(page_tokens), 0
    for step in steps:
        num_tokens = min(len(ids), num_tokens + step)
        chain.extend(ids, num_tokens)
    assert chain.keys == block_keys(ids[:num_tokens], page_tokens)


def test_a_copy_grows_its_own_way():
    chain = BlockChain(2, [1, 2, 3, 4])
    twin = chain.copy(1)
    twin.extend([1, 2, 9, 4], 4)
    assert chain.keys == block_keys([1, 2, 3, 4], 2)
    assert twin.keys == block_keys([1, 2, 9, 4], 2)
