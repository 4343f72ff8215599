"""Pages in host memory: bounded, least recently used out first, and what is lent stays as it is."""

from __future__ import annotations

import torch

from router.kv_tiers.host import HostTier
from tests.router.kv_tiers.content import block, random_row, tiny_cache


class Host:
    """A tier with room for so many slots, and what left it."""

    def __init__(self, num_slots: int) -> None:
        _, _, self.page_bytes = tiny_cache()
        self.left: dict = {}
        limit_bytes = num_slots * self.page_bytes.slot_bytes + self.page_bytes.slot_bytes - 1
        self.tier = HostTier(self.page_bytes, limit_bytes, lambda left, copy: self.left.__setitem__(left, copy()))

    def row(self, number: int, is_local: bool = False):
        return random_row(self.page_bytes, is_local, number)

    def put(self, *numbers: int, is_local: bool = False) -> None:
        rows = torch.stack([self.row(number, is_local).flatten() for number in numbers])
        self.tier.put([block(number, is_local=is_local) for number in numbers], rows)
        self.tier.check()

    def take(self, number: int, is_local: bool = False):
        """Return a page's content [slots, bytes], and forget it."""
        slots = self.tier.lend(block(number, is_local=is_local))
        row = self.tier.read(is_local, [slots])[0].unflatten(0, (len(slots), -1))
        self.tier.give_back(slots)
        return row


def test_pages_of_both_kinds_come_back_as_they_were():
    host = Host(20)
    host.put(1, 2)
    host.put(1, 3, is_local=True)
    for number, is_local in ((2, False), (3, True), (1, True), (1, False)):
        assert torch.equal(host.take(number, is_local), host.row(number, is_local))
    assert host.tier.used_bytes == 0


def test_what_has_no_room_leaves_with_its_content_the_least_recently_used_first():
    host = Host(3)
    host.put(1, 2, 3)
    host.put(1)
    host.put(4)
    assert set(host.left) == {block(2)}
    host.put(5, is_local=True)
    assert set(host.left) == {block(1), block(2), block(3), block(4)}
    assert all(torch.equal(row, host.row(int.from_bytes(name[1], "big"))) for name, row in host.left.items())
    assert torch.equal(host.take(5, is_local=True), host.row(5, is_local=True))


def test_more_pages_at_once_than_there_is_room_for_leave_in_order_and_the_last_stay():
    host = Host(2)
    host.put(1, 2, 3, 4, 5)
    assert list(host.left) == [block(1), block(2), block(3)]
    assert all(torch.equal(row, host.row(int.from_bytes(name[1], "big"))) for name, row in host.left.items())
    assert torch.equal(host.take(5), host.row(5))


def test_a_page_that_never_fits_leaves_at_once():
    host = Host(2)
    host.put(1, is_local=True)
    assert torch.equal(host.left[block(1, is_local=True)], host.row(1, is_local=True))
    assert host.tier.used_bytes == 0


def test_lent_pages_are_not_overwritten():
    host = Host(2)
    host.put(1, 2)
    slots = host.tier.lend(block(1))
    host.put(3, 4)
    assert torch.equal(host.tier.read(False, [slots])[0], host.row(1).flatten())
    host.tier.give_back(slots)
    assert block(1) not in host.tier
