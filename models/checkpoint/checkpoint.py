"""An opened checkpoint: shapes, sizes and byte ranges at once, weights on demand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.arena import Arena
from models.checkpoint.code_blocks import StoredCodes, read_codes, stored_codes
from models.checkpoint.codes import CODE_DTYPES, unpack_pairs, write_weights
from models.checkpoint.hf_layout import has_hf_weights, map_hf_tensors, read_hf_table
from models.checkpoint.meta_layout import count_vocabulary, map_meta_tensors, read_meta_tables
from models.checkpoint.source_table import SourceTable
from models.checkpoint.stored_tensor import WEIGHT_DTYPES, Block, ByteRange, turned
from models.checkpoint.tensor_shapes import expert_names, is_expert, tensor_shapes
from models.config import ModelConfig
from models.hf_config import HF_CONFIG, read_hf_config
from models.linear import Fp8Weight, Int4Weight
from models.meta_config import META_PARAMS, read_meta_config
from protos.errors import BadCheckpoint, BadConfig

# Linux reads at most 2 GiB - 4 KiB at a time.
_MAX_READ_BYTES = 1 << 30


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint in a folder, in Hugging Face's or in Meta's layout.

    Reads configuration and headers, no weights: under 2 s for Scout.

    Raises:
        BadConfig: the configuration is missing, or describes a model that Herd does not run.
        BadCheckpoint: a file is missing, cut short or corrupt, or a tensor is not as the configuration says.
    """
    folder = Path(folder)
    has_hf, has_meta = (folder / HF_CONFIG).is_file(), (folder / META_PARAMS).is_file()
    if not has_hf and not has_meta:
        raise BadConfig(f"{folder}: expected {HF_CONFIG} or {META_PARAMS}, found neither: give a model's folder")
    if has_hf_weights(folder) or not has_meta:
        config, table = read_hf_config(folder), read_hf_table(folder)
        return Checkpoint(folder, config, map_hf_tensors(config, table), [table])
    tables = read_meta_tables(folder)
    config = read_meta_config(
        folder, vocab_size=count_vocabulary(tables), tie_embeddings="output.weight" not in tables[0]
    )
    return Checkpoint(folder, config, map_meta_tensors(config, tables), tables)


class Checkpoint:
    """A model's tensors under Herd's names, wherever and however its files keep them.

    Safe to use from several threads. Files are opened for each read, so there is nothing to close.

    Args:
        folder: where it is.
        config: the architecture; its dtype is replaced by what the files hold.
        blocks: what makes up each of our tensors.
        tables: all that the files store, for the fingerprint.
    """

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        blocks: Mapping[str, tuple[Block, ...]],
        tables: list[SourceTable],
    ) -> None:
        self._blocks = blocks
        self._shapes = tensor_shapes(config)
        self._bytes_read = 0
        self._lock = threading.Lock()
        self.folder = folder
        for name in self._shapes:
            _check_one_dtype(name, blocks[name])
        stored_dtype = blocks["embed"][0].source.torch_dtype
        self.config = dataclasses.replace(config, dtype=str(stored_dtype).removeprefix("torch."))
        self.fingerprint = _fingerprint(self.config, tables)
        self.changed = _changed(tables)
        """Tells files apart that have the same shapes and other weights, by when they were written last."""

    @property
    def bytes_read(self) -> int:
        """Bytes of weights read from files so far, by this object."""
        return self._bytes_read

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor's name, in the order of the forward pass. Tied embeddings appear once, as `embed`."""
        return tuple(self._shapes)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(self.num_bytes(name) for name in self._shapes)

    @property
    def router_bytes(self) -> int:
        """Bytes as stored of what a router holds: everything but routed experts."""
        return self.total_bytes - sum(self.expert_bytes(expert) for expert in range(self.config.num_experts))

    def expert_bytes(self, expert: int) -> int:
        """Return the bytes as stored of one routed expert through all MoE layers."""
        return sum(self.num_bytes(name) for layer in self.config.moe_layers for name in expert_names(layer, expert))

    @property
    def router_weights(self) -> int:
        """Numbers of what a router holds, however they are stored."""
        total = sum(self.num_weights(name) for name in self._shapes)
        return total - self.config.num_experts * self.expert_weights

    @property
    def expert_weights(self) -> int:
        """Numbers of one routed expert through all MoE layers; 0: there are none."""
        layers = self.config.moe_layers if self.config.num_experts else ()
        return sum(self.num_weights(name) for layer in layers for name in expert_names(layer, 0))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._shapes[self._own_name(name)]

    def num_weights(self, name: str) -> int:
        """Return the numbers of a tensor."""
        return math.prod(self.shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype a tensor is stored in; of one stored as codes, that of the weights that are not."""
        block = self._blocks[self._own_name(name)][0]
        return block.source.torch_dtype if block.scales is None else getattr(torch, self.config.dtype)

    def num_bytes(self, name: str) -> int:
        """Return the bytes of a tensor as it is stored: what reading it reads."""
        return sum(block.num_bytes for block in self._with_scales(name))

    def locate(self, name: str) -> tuple[ByteRange, ...]:
        """Return the byte ranges that reading a tensor reads."""
        return tuple(found for block in self._with_scales(name) for found in block.byte_ranges())

    def stored_codes(self, name: str) -> StoredCodes | None:
        """Return how a tensor's codes lie, if `read_codes` can read it; None: it has none, or of another kind."""
        name = self._own_name(name)
        return stored_codes(self._blocks[name], self._shapes[name], is_turned=is_expert(name))

    def read_codes(self, name: str, memory: Arena | None = None) -> Int4Weight | Fp8Weight:
        """Read a tensor that has codes as it was rounded, by rows [out, in]: an expert's matrix is turned.

        Args:
            name: Herd's name of it.
            memory: for what is needed meanwhile, to be used again and again; None: new memory.

        Raises:
            BadCheckpoint: as `read`.
        """
        name, memory, codes = self._own_name(name), memory or Arena(), self.stored_codes(name)
        assert codes is not None, "ask stored_codes first"
        memory.clear()

        def read_rows(block: Block) -> Tensor:
            return self._read_rows(name, block, memory)

        return read_codes(self._blocks[name], codes, read_rows, is_turned=is_expert(name))

    def read(self, name: str, dtype: torch.dtype | None = None, memory: Arena | None = None) -> Tensor:
        """Read one tensor.

        Args:
            name: Herd's name of it; `lm_head` is `embed` where the two are tied.
            dtype: what to convert it to; None: leave it as stored.
            memory: to read into again and again; None: new memory.

        Returns:
            A tensor on the CPU; of one stored as codes, the weights they stand for. In `memory` it has the strides it
            was stored with and lasts until the next reading there; else it is contiguous and the caller's.

        Raises:
            BadCheckpoint: the file has changed or vanished since it was opened, or the disk fails.

        Cost: blocks on the disk; with a conversion, both forms are in memory for a moment.
        """
        name = self._own_name(name)
        if memory is None:
            found = self._read_blocks(name, Arena(), dtype)
            return found.contiguous() if dtype is None else found.to(dtype).contiguous()
        memory.clear()
        found = self._read_blocks(name, memory, dtype)
        if dtype in (None, found.dtype):
            return found
        by_rows = found if found.is_contiguous() else found.T
        converted = memory.empty(by_rows.shape, dtype).copy_(by_rows)
        return converted if by_rows is found else converted.T

    def _read_blocks(self, name: str, memory: Arena, dtype: torch.dtype | None) -> Tensor:
        """Return a tensor as stored; one that consists of transposed blocks only, as a transposed view of these.

        What codes stand for is made in the dtype that is wanted, if any.
        """
        blocks, shape = self._blocks[name], self._shapes[name]
        is_turned = all(block.is_transposed for block in blocks)
        if is_turned:
            blocks, shape = tuple(map(turned, blocks)), shape[::-1]
        stored = self.dtype(name)
        out = memory.empty(shape, dtype or stored if blocks[0].scales else stored)
        rows = out if out.dim() == 2 else out[None]
        for block in blocks:
            self._read_block(name, block, rows, memory)
        return out.T if is_turned else out

    def _with_scales(self, name: str) -> Iterator[Block]:
        """Yield all that reading a tensor reads."""
        for block in self._blocks[self._own_name(name)]:
            yield block
            if block.scales is not None:
                yield block.scales

    def _own_name(self, name: str) -> str:
        """Return the name a tensor is kept under."""
        if name == "lm_head" and self.config.tie_embeddings:
            return "embed"
        if name not in self._shapes:
            raise KeyError(f"{name} is no tensor of {self.folder}; names lists them")
        return name

    def _read_block(self, name: str, block: Block, out: Tensor, memory: Arena) -> None:
        """Fill a block's place in one of our tensors: in place where its bytes lie there as in the file."""
        height, width = (block.width, block.height) if block.is_transposed else (block.height, block.width)
        place = out[block.row : block.row + height, block.column : block.column + width]
        if block.scales is not None:
            codes, scales = (self._read_rows(name, each, memory) for each in (block, block.scales))
            turned_scales = scales.T if block.scales.is_transposed else scales
            if codes.dtype == torch.int8:
                codes = unpack_pairs(codes, is_by_column=block.is_packed_by_column)
            write_weights(codes, turned_scales, place.T if block.is_transposed else place)
            return
        if not block.is_transposed and place.is_contiguous():
            self._read_into(name, block, place)
            return
        rows = self._read_rows(name, block, memory)
        place.copy_(rows.T if block.is_transposed else rows)

    def _read_rows(self, name: str, block: Block, memory: Arena) -> Tensor:
        """Return a block's rows as they are stored."""
        rows = memory.empty((block.num_rows, block.source.num_columns), block.source.torch_dtype)
        self._read_into(name, block, rows)
        return rows

    def _read_into(self, name: str, block: Block, target: Tensor) -> None:
        """Read a block's byte ranges one after the other into a contiguous tensor's memory."""
        array: Any = target.reshape(-1).view(torch.uint8).numpy()
        view = memoryview(array)
        file, done = block.source.file, 0
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for wanted in block.byte_ranges():
                    self._read_range(name, descriptor, wanted, view[done : done + wanted.num_bytes])
                    done += wanted.num_bytes
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BadCheckpoint(f"{file}: expected to read {name}, found: {error.strerror}") from error

    def _read_range(self, name: str, descriptor: int, wanted: ByteRange, view: memoryview) -> None:
        done = 0
        while done < wanted.num_bytes:
            count = os.preadv(descriptor, [view[done : done + _MAX_READ_BYTES]], wanted.offset + done)
            if count == 0:
                raise BadCheckpoint(
                    f"{wanted.file}: expected {name} to end at byte {wanted.offset + wanted.num_bytes}, found the "
                    f"file's end at {wanted.offset + done}: it was cut short after it was opened"
                )
            done += count
            with self._lock:
                self._bytes_read += count


def _check_one_dtype(name: str, blocks: tuple[Block, ...]) -> None:
    """Check that a tensor put together from several has one dtype."""
    dtypes = {block.source.dtype for block in blocks}
    readable = CODE_DTYPES if blocks[0].scales else WEIGHT_DTYPES
    if len(dtypes) > 1 or not dtypes <= readable.keys():
        sources = ", ".join(f"{block.source.name} in {block.source.file}" for block in blocks)
        raise BadCheckpoint(f"{name}: expected parts of one dtype, found {sorted(dtypes)}: {sources}")


def _changed(tables: list[SourceTable]) -> str:
    """Return a hash of the files' times of change, which are another after a copy of the files, too."""
    files = sorted({tensor.file for table in tables for tensor in table})
    described = json.dumps([(file.name, file.stat().st_mtime_ns) for file in files])
    return hashlib.sha256(described.encode()).hexdigest()[:32]


def _fingerprint(config: ModelConfig, tables: list[SourceTable]) -> str:
    """Return a hash that is equal for copies of a checkpoint and differs for most others; weights are not read."""
    stored = sorted(
        (tensor.file.name, tensor.name, tensor.dtype, list(tensor.shape)) for table in tables for tensor in table
    )
    files = sorted({tensor.file for table in tables for tensor in table})
    sizes = [(file.name, file.stat().st_size) for file in files]
    described = json.dumps([dataclasses.asdict(config), stored, sizes], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]
