"""Pages that the cache had no room for come back from host memory and disk: less is computed and no token changes."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from router.kv_tiers.rate import Rate
from router.request import SamplingParams
from tests.router.local_engine import LocalEngine, local_engine, tokens_alone
from tests.router.test_engine_preemption import cache_bytes
from tests.router.test_engine_prefix import page_bytes
from tests.tiny import TINY

PLENTY = 10_000_000
LITTLE = 3 * page_bytes()
SMALL = {"kv_bytes": cache_bytes(num_global=12, num_local=4), "context_length": 96, "page_tokens": 4}
"""A cache that one prompt of 84 tokens and its output fill."""
DOCUMENT, OTHER = (tuple(random.Random(seed).choices(range(3, TINY.vocab_size), k=84)) for seed in (1, 2))
TIERS = {
    "host": {"host_kv_bytes": PLENTY},
    "disk": {"disk_kv_bytes": PLENTY},
    "both": {"host_kv_bytes": LITTLE, "disk_kv_bytes": PLENTY},
    "a full disk": {"disk_kv_bytes": 20 * page_bytes()},
}


def restored_bytes(local: LocalEngine) -> int:
    counts = local.engine.load().kv_tiers
    return counts.restored_host_bytes + counts.restored_disk_bytes


def ask_after_another(local: LocalEngine, *questions: int, same: bool = True) -> list[int | None]:
    """Ask about a document, about another, and about the first again; return how much of it was in the cache.

    Args:
        local: the engine.
        questions: to append.
        same: whether the cache stores floats as they are, so that the tokens must be the same.
    """
    found = []
    for document in (DOCUMENT, OTHER, DOCUMENT):
        stream = local.ask((*document, *questions), 4)
        tokens = stream.tokens()
        assert not same or tokens == tokens_alone((*document, *questions), 4)
        found.append(stream.num_cached)
    return found


def wait_until_moved(local: LocalEngine) -> None:
    """Return when nothing is on its way to disk."""
    local.wait_for(lambda: not local.engine._tiers._moves.leaving and not local.engine._tiers._is_moving)


@pytest.mark.parametrize("tiers", ["host", "disk", "both"])
def test_a_second_question_costs_its_own_tokens_though_the_document_was_evicted(tiers):
    with local_engine(**SMALL, **TIERS[tiers]) as local:
        assert ask_after_another(local, 5, 6) == [0, 0, 84]
        assert local.transport.num_tokens == 2 * (86 + 3) + 2 + 3
        assert restored_bytes(local) > 0
        assert (local.engine.load().kv_tiers.restored_disk_bytes > 0) == (tiers != "host")


def test_without_tiers_an_evicted_document_is_computed_again():
    with local_engine(**SMALL) as local:
        assert ask_after_another(local, 5, 6)[2] < 84
        assert restored_bytes(local) == 0


def test_a_cache_that_is_switched_off_has_no_tiers():
    with local_engine(**SMALL, prefix_cache=False, host_kv_bytes=PLENTY) as local:
        assert ask_after_another(local) == [0, 0, 0]
        assert local.engine.load().kv_tiers.host_bytes == 0


def test_what_is_computed_sooner_than_it_comes_back_is_computed():
    class NeverRate(Rate):
        def seconds(self, num_bytes):
            return 1e9

    with local_engine(**SMALL, **TIERS["host"]) as local:
        local.engine._tiers.rates["host"] = NeverRate()
        assert ask_after_another(local)[2] < 80
        assert restored_bytes(local) == 0


@pytest.mark.parametrize(("seed", "tiers"), list(enumerate(TIERS)))
@pytest.mark.parametrize("changes", [{}, {"nope_layers": (1, 3)}, {"nope_layers": ()}], ids=["1:3", "2:2", "local"])
def test_random_prompts_get_the_tokens_they_get_alone(seed, tiers, changes):
    chance = random.Random(seed)
    prompts = [(*chance.choice((DOCUMENT, OTHER))[: chance.randrange(85)], chance.randrange(3, 96)) for _ in range(30)]
    limits = SMALL | {"slots": 3, "kv_bytes": cache_bytes(num_global=16, num_local=3)}
    requests = [
        {"prompt": prompt, "max_tokens": chance.randrange(1, 12), "priority": chance.choice((0, 0, 1))}
        | {"sampling": SamplingParams(temperature=float(chance.random() < 0.5), seed=number)}
        for number, prompt in enumerate(prompts)
    ]
    with local_engine(changes, **limits, **TIERS[tiers]) as local:
        streams = [local.ask(request_id=str(number), **request) for number, request in enumerate(requests)]
        found = [stream.tokens() for stream in streams]
        assert restored_bytes(local) > 0 or tiers == "a full disk" or not changes.get("nope_layers", True)
        assert local.engine.load().cached_tokens
    with local_engine(changes, prefix_cache=False) as alone:
        assert found == [alone.ask(**request).tokens() for request in requests]


def test_questions_asked_together_bring_their_document_back_once():
    with local_engine(**SMALL, **TIERS["disk"]) as local:
        ask_after_another(local)
        local.ask(OTHER, 4).tokens()
        wait_until_moved(local)
        before = restored_bytes(local)
        streams = [local.ask((*DOCUMENT, 5), 1, str(number)) for number in range(3)]
        assert [stream.tokens() for stream in streams] == [tokens_alone((*DOCUMENT, 5), 1)] * 3
        # All global pages of the document and the half of a local one that its last chunk has.
        assert restored_bytes(local) - before <= cache_bytes(num_global=10.5, num_local=0.5)


def test_a_prompt_that_leaves_while_its_pages_come_back_leaves_nothing():
    with local_engine(**SMALL, **TIERS["both"]) as local:
        ask_after_another(local)
        local.ask(OTHER, 4).tokens()
        for number in range(20):
            local.ask((*DOCUMENT, 5), 4, f"r{number}")
            local.engine.cancel(f"r{number}")
        local.wait_for(local.is_empty)
        assert local.ask((*DOCUMENT, 5), 4, "last").tokens() == tokens_alone((*DOCUMENT, 5), 4)


def flip_bits(path) -> None:
    content = bytearray(path.read_bytes())
    for offset in range(4096, len(content), 97):
        content[offset] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "bits flip": flip_bits,
    "it is cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "it is emptied": lambda path: os.truncate(path, 0),
    "it is removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_becomes_of_the_file_no_token_changes(tmp_path, damage):
    with local_engine(**SMALL, **TIERS["disk"], kv_folder=tmp_path) as local:
        for _ in range(3):
            ask_after_another(local, 7)
            wait_until_moved(local)
            for path in tmp_path.iterdir():
                DAMAGES[damage](path)
        damaged = local.engine._tiers.counts().num_damaged
        assert (damaged > 0) == (damage != "it is removed")
    with local_engine(**SMALL, **TIERS["disk"], kv_folder=tmp_path) as local:
        ask_after_another(local, 7)


@pytest.mark.parametrize("tiers", ["disk", "both"])
def test_a_kept_folder_serves_the_next_router_with_all_there_was(tmp_path, tiers):
    for expected in (0, 84):
        with local_engine(**SMALL, **TIERS[tiers], kv_folder=tmp_path, model="one") as local:
            for document in (DOCUMENT, OTHER):
                stream = local.ask((*document, 5), 4)
                assert stream.tokens() == tokens_alone((*document, 5), 4)
                assert stream.num_cached == expected


def test_pages_of_another_model_are_not_used(tmp_path):
    disk = SMALL | TIERS["disk"] | {"kv_folder": tmp_path, "model": "one", "kv_dtype": "float16"}
    with local_engine(**disk) as local:
        ask_after_another(local, same=False)
    for changes in ({"model": "two"}, {"kv_dtype": "bfloat16"}, {"page_tokens": 8}):
        with local_engine(**disk | changes) as local:
            stream = local.ask((*OTHER, 5), 4)
            stream.tokens()
            assert stream.num_cached == 0
        with local_engine(**disk) as local:
            local.ask((*OTHER, 5), 4).tokens()


def test_a_folder_that_cannot_be_used_costs_the_disk_and_nothing_else(tmp_path, caplog):
    (tmp_path / "file").touch()
    with local_engine(**SMALL, **TIERS["disk"], kv_folder=tmp_path / "file" / "folder") as local:
        ask_after_another(local)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


FULL = """
import logging, resource
from tests.router.test_engine_tiers import SMALL, TIERS, ask_after_another, local_engine, page_bytes, tokens_alone
from tests.router.test_engine_tiers import DOCUMENT, OTHER
logging.basicConfig(format="%(levelname)s %(message)s")
for document in (DOCUMENT, OTHER):
    tokens_alone(document, 4)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 3 * page_bytes(), resource.RLIM_INFINITY))
with local_engine(**SMALL, **TIERS["disk"]) as local:
    for _ in range(3):
        ask_after_another(local)
    local.wait_for(lambda: local.engine._tiers._disk is None)
    ask_after_another(local)
    assert local.engine._tiers.counts().disk_bytes == 0
print("served")
"""


def test_a_full_disk_is_switched_off_with_one_warning_and_no_request_fails(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FULL],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert found.stdout == "served\n", found.stderr
    assert found.stderr.count("WARNING") == 1, found.stderr
    assert "no more pages go to disk" in found.stderr
    assert not list(tmp_path.iterdir())


def test_no_file_is_left_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with local_engine(**SMALL, **TIERS["disk"]) as local:
        ask_after_another(local)
        wait_until_moved(local)
        assert local.engine._tiers.counts().disk_bytes > 0
    assert not list(tmp_path.iterdir())
