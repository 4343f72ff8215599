"""Pages in one file of fixed size at most.

    file     [ head, 4096 bytes ][ slot 0 ][ slot 1 ] ...
    head     magic, fingerprint of whose pages these are, bytes of a slot, CRC-32 of all that
    slot     [ record, 64 bytes ][ content ]
    record   magic, key, kind, number of this slot among its page's, serial number, CRC-32 of the content, of the record

Every checksum begins with the fingerprint's: what another model, dtype or page size left is not taken for ours. A write
that was cut short shows in the checksum too, so nothing is ever synchronised or repaired: what does not check is
forgotten, and its tokens are computed again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import tempfile
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from router.kv_tiers.books import SlotBooks
from router.kv_tiers.page_bytes import PageBytes
from router.paging.refill import Block

_LOG = logging.getLogger(__name__)
_HEAD = struct.Struct("<8s32sQ")
_HEAD_BYTES = 4096
_HEAD_MAGIC = b"herd-kv1"
_RECORD = struct.Struct("<4s16sBHQI")
_RECORD_BYTES = 64
_RECORD_MAGIC = b"page"
_CRC = struct.Struct("<I")
_MOST_FILES = 256
"""Routers that can keep files in one folder."""


class DiskTier:
    """Pages in a file, the least recently used of which are overwritten first.

    Only one thread may `put` and `read`; the rest may be called from any.

    Args:
        page_bytes: of the cache.
        limit_bytes: largest size of the file.
        fingerprint: 32 bytes that differ for caches whose pages differ for the same tokens.
        folder: where to keep the file over restarts; the first one nobody uses is taken. None: a file without a name in
            the system's temporary folder, which is gone with the process, however that ends.

    Raises:
        OSError: there is no such folder, no room, no permission.
    """

    def __init__(self, page_bytes: PageBytes, limit_bytes: int, fingerprint: bytes, folder: Path | None = None) -> None:
        self._page_bytes = page_bytes
        self._stride = _RECORD_BYTES + page_bytes.slot_bytes
        self._head = _HEAD.pack(_HEAD_MAGIC, fingerprint, page_bytes.slot_bytes)
        self._crc = zlib.crc32(self._head)
        self._books = SlotBooks(max(limit_bytes - _HEAD_BYTES, 0) // self._stride)
        self._lock = threading.Lock()
        self._serial = 0
        self._kept: set[Block] = set()
        self._may_go: Iterator[Block] = iter(())
        self._keep_serial: int | None = None
        self.num_damaged = 0
        """Pages that were not what had been written."""
        self._file: BinaryIO = tempfile.TemporaryFile() if folder is None else _open_free(folder)  # noqa: SIM115 closed by close
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    @property
    def used_bytes(self) -> int:
        """Return the bytes of the file that hold pages."""
        with self._lock:
            return self._books.num_used * self._stride

    def __contains__(self, block: Block) -> bool:
        """Return whether a block is here, as far as is known without reading it."""
        with self._lock:
            return block in self._books

    def touch(self, block: Block) -> bool:
        """Return whether a block is here, and count that as a use."""
        with self._lock:
            return self._books.find(block) is not None

    def place(self, block: Block) -> tuple[bool, int]:
        """Return what to sort blocks by to read them in the order they lie in: kind, then place."""
        with self._lock:
            slots = self._books.find(block)
        return block[0], -1 if slots is None else slots[0]

    def keep(self, block: Block, row: Tensor) -> bool:
        """Write a page for the next process, the most recently used first; tell whether there was room for it.

        Makes room as `put` does, but not at the cost of what was kept before: that was used later.
        """
        with self._lock:
            if self._keep_serial is None:
                self._keep_serial = self._serial + self._books.num_slots + 1
                self._may_go = iter([each for each, _ in self._books.blocks()])
            self._kept.add(block)
            if block in self._books:
                return True
            while not self._books.has_room(len(row)):
                oldest = next((each for each in self._may_go if each not in self._kept), None)
                if oldest is None:
                    return False
                self._books.remove(oldest)
        self._keep_serial -= len(row)
        after, self._serial = self._serial, self._keep_serial
        try:
            self.put(block, row)
        finally:
            self._serial = after
        return True

    def put(self, block: Block, row: Tensor) -> None:
        """Write a page.

        Args:
            block: of the page.
            row: its content [slots, bytes of a slot] uint8.

        Raises:
            OSError: the disk is full, or broken.
        """
        with self._lock:
            if len(row) > self._books.num_slots or self._books.find(block) is not None:
                return
            while not self._books.has_room(len(row)):
                oldest = self._books.oldest()
                assert oldest is not None, "slots of a file are never lent"
                self._books.remove(oldest[0])
            slots = self._books.add(block, len(row))
        try:
            for part, (slot, content) in enumerate(zip(slots, row, strict=True)):
                data = memoryview(content.numpy())
                pieces: list[bytes | memoryview] = [self._record(block, part, zlib.crc32(data, self._crc)), data]
                if os.pwritev(self._file.fileno(), pieces, self._offset(slot)) != self._stride:
                    raise OSError("the file cannot grow any further")
        except OSError:
            self._forget(block)
            raise

    def read(self, block: Block, row: Tensor) -> bool:
        """Read a page, and return whether it is what was written. If not, it is forgotten.

        Args:
            block: of the page.
            row: where to, [slots, bytes of a slot] uint8, contiguous.

        Raises:
            OSError: the disk is broken.
        """
        with self._lock:
            slots = self._books.find(block)
        if slots is None:
            return False
        record = bytearray(_RECORD_BYTES)
        for part, (slot, content) in enumerate(zip(slots, row, strict=True)):
            data = memoryview(content.numpy())
            num_read = os.preadv(self._file.fileno(), [record, data], self._offset(slot))
            found = self._parse(record) if num_read == self._stride else None
            if found is None or found[:2] != (block, part) or found[3] != zlib.crc32(data, self._crc):
                self._forget(block)
                self.num_damaged += 1
                return False
        return True

    def drop_page_cache(self) -> None:
        """Write the file out and ask the system to keep none of it in memory: then reads are the disk's."""
        os.fsync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Close the file; one in a folder stays there."""
        self._file.close()

    def check(self) -> None:
        """Verify the books; see SlotBooks."""
        with self._lock:
            self._books.check()

    def _begin(self) -> None:
        """Take over what the file holds if it is of the same cache, else begin an empty one."""
        file, head = self._file.fileno(), self._head + _CRC.pack(self._crc)
        if os.pread(file, len(head), 0) != head:
            os.ftruncate(file, 0)
            os.pwrite(file, head.ljust(_HEAD_BYTES, b"\0"), 0)
            return
        size = min(os.fstat(file).st_size, _HEAD_BYTES + self._books.num_slots * self._stride)
        os.ftruncate(file, size)
        self._take_over((size - _HEAD_BYTES) // self._stride)

    def _take_over(self, num_slots: int) -> None:
        """Note the pages that are complete, by their records: their content is checked when it is read."""
        parts: defaultdict[Block, dict[int, tuple[int, int]]] = defaultdict(dict)  # part -> (serial, slot)
        for slot in range(num_slots):
            record = os.pread(self._file.fileno(), _RECORD_BYTES, self._offset(slot))
            if (found := self._parse(record)) is not None:
                block, part, serial, _ = found
                parts[block][part] = max(parts[block].get(part, (-1, -1)), (serial, slot))
        serials = {block: max(serial for serial, _ in of.values()) for block, of in parts.items()}
        for block in sorted(parts, key=serials.__getitem__):
            count = self._page_bytes.slots_per_page[block[0]]
            if set(parts[block]) == set(range(count)):
                self._books.place(block, tuple(parts[block][part][1] for part in range(count)))
        self._books.close_gaps()
        self._serial = max(serials.values(), default=-1) + 1
        _LOG.info("took over %d pages that an earlier router left on disk", len(self._books))

    def _record(self, block: Block, part: int, content_crc: int) -> bytes:
        is_local, key = block
        record = _RECORD.pack(_RECORD_MAGIC, key, is_local, part, self._serial, content_crc)
        self._serial += 1
        return (record + _CRC.pack(zlib.crc32(record, self._crc))).ljust(_RECORD_BYTES, b"\0")

    def _parse(self, record: bytes | bytearray) -> tuple[Block, int, int, int] | None:
        """Return (block, part, serial, CRC of the content) of a record, None if it is none of ours."""
        fields, crc = bytes(record[: _RECORD.size]), bytes(record[_RECORD.size : _RECORD.size + _CRC.size])
        if len(crc) < _CRC.size or _CRC.unpack(crc)[0] != zlib.crc32(fields, self._crc):
            return None
        _, key, is_local, part, serial, content_crc = _RECORD.unpack(fields)
        return (bool(is_local), key), part, serial, content_crc

    def _offset(self, slot: int) -> int:
        return _HEAD_BYTES + slot * self._stride

    def _forget(self, block: Block) -> None:
        with self._lock:
            if block in self._books:
                self._books.remove(block)


def _open_free(folder: Path) -> BinaryIO:
    """Open the first file of a folder that no other process has open, and lock it until it is closed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(_MOST_FILES):
        path = folder / f"kv-{number}.pages"
        file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        except OSError:
            file.close()
            raise
        return file
    raise OSError(f"expected fewer than {_MOST_FILES} routers with pages in {folder}, found all files in use")
