"""Pages in a file: what comes back is what was written, or nothing."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from contextlib import closing, contextmanager

import pytest
import torch

from router.kv_tiers.disk import DiskTier
from tests.router.kv_tiers.content import block, random_row, tiny_cache

OURS, THEIRS = bytes(32), bytes([1] * 32)
_, _, BYTES = tiny_cache()
STRIDE = BYTES.slot_bytes + 64


@contextmanager
def disk(folder=None, num_slots=40, fingerprint=OURS):
    """Open a tier with room for so many slots."""
    with closing(DiskTier(BYTES, 4096 + num_slots * STRIDE, fingerprint, folder)) as tier:
        yield tier
        tier.check()


def put(tier, *numbers, is_local=False) -> None:
    for number in numbers:
        tier.put(block(number, is_local=is_local), random_row(BYTES, is_local, number))


def reads(tier, number, is_local=False) -> bool:
    """Return whether a page can be read; its content must then be right."""
    row = torch.zeros_like(random_row(BYTES, is_local, number))
    found = tier.read(block(number, is_local=is_local), row)
    assert not found or torch.equal(row, random_row(BYTES, is_local, number))
    return found


def test_pages_of_both_kinds_come_back_as_they_were():
    with disk() as tier:
        put(tier, 1, 2)
        put(tier, 2, 3, is_local=True)
        assert [reads(tier, *page) for page in ((1,), (2,), (2, True), (3, True))] == [True] * 4
        assert not reads(tier, 3)
        assert not reads(tier, 1, True)


def test_the_least_recently_used_pages_are_overwritten_and_the_file_stays_within_its_size(tmp_path):
    with disk(tmp_path, num_slots=4) as tier:
        put(tier, 1, 2, 3, 4)
        assert reads(tier, 1)
        put(tier, 5)
        put(tier, 6, is_local=True)
        assert [reads(tier, number) for number in range(1, 6)] == [False, False, False, False, True]
        assert reads(tier, 6, True)
        assert (tmp_path / "kv-0.pages").stat().st_size == 4096 + 4 * STRIDE


def test_a_page_that_never_fits_is_not_written():
    with disk(num_slots=2) as tier:
        put(tier, 1, is_local=True)
        assert tier.used_bytes == 0


def test_a_file_without_a_folder_has_no_name():
    with disk() as tier:
        put(tier, 1)
        assert os.fstat(tier._file.fileno()).st_nlink == 0


def test_a_kept_folder_is_taken_over_with_its_order(tmp_path):
    with disk(tmp_path, num_slots=6) as tier:
        put(tier, 1, 2)
        put(tier, 3, is_local=True)
    with disk(tmp_path, num_slots=6) as tier:
        assert tier.used_bytes == 5 * STRIDE
        put(tier, 4, 5)
        assert [reads(tier, number) for number in (1, 2, 4, 5)] == [False, True, True, True]
        assert reads(tier, 3, True)
    assert [path.name for path in tmp_path.iterdir()] == ["kv-0.pages"]
    assert (tmp_path / "kv-0.pages").stat().st_mode & 0o777 == 0o600


def test_a_smaller_limit_cuts_a_kept_file(tmp_path):
    with disk(tmp_path) as tier:
        put(tier, *range(10))
    with disk(tmp_path, num_slots=4) as tier:
        assert (tmp_path / "kv-0.pages").stat().st_size == 4096 + 4 * STRIDE
        assert [reads(tier, number) for number in range(6)] == [True] * 4 + [False] * 2


def test_pages_of_another_model_are_dropped(tmp_path):
    with disk(tmp_path) as tier:
        put(tier, 1)
    with disk(tmp_path, fingerprint=THEIRS) as tier:
        assert tier.used_bytes == 0
        assert not reads(tier, 1)
        put(tier, 2)
    with disk(tmp_path) as tier:
        assert not reads(tier, 1)
        assert not reads(tier, 2)


def test_records_of_another_model_are_dropped_though_the_file_is_ours(tmp_path):
    for fingerprint, folder in ((OURS, tmp_path / "ours"), (THEIRS, tmp_path / "theirs")):
        with disk(folder, fingerprint=fingerprint) as tier:
            put(tier, 1, 2)
    ours, theirs = ((tmp_path / name / "kv-0.pages").read_bytes() for name in ("ours", "theirs"))
    (tmp_path / "ours" / "kv-0.pages").write_bytes(ours[: 4096 + STRIDE] + theirs[4096 + STRIDE :])
    with disk(tmp_path / "ours") as tier:
        assert [reads(tier, 1), reads(tier, 2)] == [True, False]


def test_two_routers_in_one_folder_have_a_file_each(tmp_path):
    with disk(tmp_path) as first, disk(tmp_path) as second:
        put(first, 1)
        assert not reads(second, 1)
        assert len(list(tmp_path.iterdir())) == 2
    with disk(tmp_path) as again:
        assert reads(again, 1)


@pytest.mark.parametrize("is_kept", [False, True], ids=["while it runs", "over a restart"])
def test_no_bit_flip_anywhere_is_read_as_a_page(tmp_path, is_kept):
    chance = random.Random(0)
    with disk(tmp_path) as tier:
        put(tier, *range(8))
    sound = (tmp_path / "kv-0.pages").read_bytes()
    for _ in range(60):
        with disk(tmp_path) as tier:
            damaged = bytearray(sound)
            slot = chance.randrange(8)
            damaged[4096 + slot * STRIDE + chance.choice([chance.randrange(39), chance.randrange(64, STRIDE)])] ^= (
                1 << chance.randrange(8)
            )
            (tmp_path / "kv-0.pages").write_bytes(damaged)
            if not is_kept:
                assert [number for number in range(8) if not reads(tier, number)] == [slot]
                assert tier.num_damaged == 1
                assert block(slot) not in tier
        if is_kept:
            with disk(tmp_path) as tier:
                assert [number for number in range(8) if not reads(tier, number)] == [slot]
        (tmp_path / "kv-0.pages").write_bytes(sound)


@pytest.mark.parametrize("size", [0, 10, 4096, 4096 + 30, 4096 + STRIDE + 100, 4096 + 2 * STRIDE - 1])
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path, size):
    with disk(tmp_path) as tier:
        put(tier, 1, 2)
        os.truncate(tmp_path / "kv-0.pages", size)
        expected = [size >= 4096 + STRIDE, False]
        assert [reads(tier, 1), reads(tier, 2)] == expected
    with disk(tmp_path) as tier:
        assert [reads(tier, 1), reads(tier, 2)] == expected
        put(tier, 1, 2)
        assert reads(tier, 2)


def test_a_file_that_is_removed_while_it_is_used_is_used_on(tmp_path):
    with disk(tmp_path) as tier:
        put(tier, 1)
        (tmp_path / "kv-0.pages").unlink()
        put(tier, 2)
        assert reads(tier, 1)
        assert reads(tier, 2)


def test_garbage_is_not_taken_over(tmp_path):
    with disk(tmp_path) as tier:
        put(tier, 1)
    path = tmp_path / "kv-0.pages"
    path.write_bytes(path.read_bytes()[:4096] + random.Random(0).randbytes(20 * STRIDE + 7))
    with disk(tmp_path) as tier:
        assert tier.used_bytes == 0


FULL = """
import resource, sys
from pathlib import Path
from tests.router.kv_tiers.test_disk import STRIDE, disk, put, reads
resource.setrlimit(resource.RLIMIT_FSIZE, (4096 + 2 * STRIDE + 50, resource.RLIM_INFINITY))
with disk(Path(sys.argv[1])) as tier:
    put(tier, 1, 2)
    for number in (3, 4):
        try:
            put(tier, number)
        except OSError as error:
            print("full:", number)
    assert reads(tier, 1) and reads(tier, 2) and not reads(tier, 3)
"""


def test_a_full_disk_is_an_error_and_what_was_written_stays(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.stdout.split("\n")[:2] == ["full: 3", "full: 4"], found.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), disk(tmp_path / "file" / "folder"):
        pass
