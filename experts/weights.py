"""The expert weights one process holds: chosen logical experts, through every MoE layer, more or fewer while it serves.

What is held at a moment is a table that never changes. Holding and releasing put another one in its place: `run` looks
at the table once, without a lock, and a batch under way keeps the experts it has begun with.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.kernels import choose
from experts.memory import return_free_memory, returnable_blocks
from experts.reader import ExpertReader
from experts.source import ExpertSource, Progress
from models.config import ModelConfig
from models.linear import Quantization
from models.llama4.mlp import Mlp
from protos.errors import BadConfig, NotEnoughMemory, StalePlacement


@dataclass(frozen=True, slots=True)
class _Held:
    """What is held at one moment."""

    expert_ids: tuple[int, ...]
    """Those that take work, ascending."""
    by_layer: Mapping[int, Mapping[int, Mlp]]
    """By layer and expert: those that take work, and those that are about to go."""

    def with_expert(self, expert: int, by_layer: Mapping[int, Mlp]) -> _Held:
        """Return this and one expert more."""
        grown = {layer: {**experts, expert: by_layer[layer]} for layer, experts in self.by_layer.items()}
        return _Held(tuple(sorted((*self.expert_ids, expert))), grown)

    def without_work_for(self, gone: set[int]) -> _Held:
        """Return this with some experts still there, but for what was accepted already."""
        return _Held(tuple(each for each in self.expert_ids if each not in gone), self.by_layer)

    def without(self, gone: set[int]) -> _Held:
        """Return this without some experts."""
        kept = {
            layer: {each: mlp for each, mlp in experts.items() if each not in gone}
            for layer, experts in self.by_layer.items()
        }
        return _Held(tuple(each for each in self.expert_ids if each not in gone), kept)


class ExpertWeights:
    """Resident weights and the kernel that runs them. Made by `load`.

    Args:
        source: where they are read from.
        dtype: of weights and tokens.
        device: where they are held.
        quantize: how they are rounded; None: not at all.
        spare_bytes: bytes of weights that `hold` may add to those of `load`; None: as many as it is told to.
    """

    def __init__(
        self,
        source: ExpertSource,
        dtype: torch.dtype,
        device: torch.device,
        quantize: Quantization | None,
        spare_bytes: int | None,
    ) -> None:
        self.config = source.config
        self.fingerprint = source.fingerprint
        self.dtype = dtype
        self.device = device
        self.quantize = quantize
        self._source = source
        self._kernel = choose(device, quantize)
        self._reader = ExpertReader(source, self._kernel, dtype, device)
        self._bytes_before = source.bytes_read
        self._held = _Held((), {layer: {} for layer in source.config.moe_layers})
        self._changing = threading.Lock()
        self._spare_bytes = spare_bytes
        self._loaded_weight_bytes = 0

    @classmethod
    def load(
        cls,
        source: ExpertSource,
        expert_ids: Sequence[int],
        dtype: torch.dtype,
        progress: Progress | None = None,
        *,
        device: torch.device | None = None,
        quantize: Quantization | None = None,
        spare_bytes: int | None = None,
        on_held: Callable[[ExpertWeights], None] = lambda weights: None,
    ) -> ExpertWeights:
        """Read chosen experts of every MoE layer and nothing else.

        Args:
            source: an opened checkpoint.
            expert_ids: logical experts, in any order.
            dtype: what to convert weights to.
            progress: called after every expert of a layer.
            device: where to hold them; None: the CPU.
            quantize: how to round them; None: not at all.
            spare_bytes: bytes of weights that `hold` may add; None: as many as it is told to.
            on_held: called with the weights after each expert that may be run from then on; none may be added or
                released before all are there.

        Raises:
            BadConfig: the model has no routed experts, or an id is out of range or given twice.
            BadCheckpoint: the weights cannot be read.

        Cost: blocks on the disk; one expert of one layer is in memory three times for a moment.
        """
        ids = _check_ids(source.config, expert_ids)
        weights = cls(source, dtype, device or torch.device("cpu"), quantize, spare_bytes)
        with weights._changing:
            weights._add(ids, progress, on_held=on_held)
            weights._loaded_weight_bytes = weights.weight_bytes
        return weights

    @property
    def layers(self) -> tuple[int, ...]:
        """MoE layers, ascending."""
        return self.config.moe_layers

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """Logical experts held through all MoE layers, ascending."""
        return self._held.expert_ids

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights in memory, as they are held."""
        return sum(expert.num_bytes for experts in self._held.by_layer.values() for expert in experts.values())

    @property
    def loaded_bytes(self) -> int:
        """Bytes read from the source so far."""
        return self._source.bytes_read - self._bytes_before

    @property
    def reading_share(self) -> float:
        """Of the time that loading took, what went into reading; the rest into packing; 0 to 1."""
        return self._reader.reading_share

    @property
    def spare_bytes(self) -> int | None:
        """Bytes of weights that `hold` may still add, none while `load` adds; None: as many as it is told to."""
        if self._spare_bytes is None:
            return None
        if not self._loaded_weight_bytes:
            return 0
        return max(self._loaded_weight_bytes + self._spare_bytes - self.weight_bytes, 0)

    def held_expert(self, expert: int) -> Mapping[int, Mlp]:
        """Return a held expert's weights by layer, ascending; they stay for as long as somebody has them.

        Raises:
            StalePlacement: it is not held.
        """
        held = self._held
        if expert not in held.expert_ids:
            raise StalePlacement(
                f"expected an expert this replica holds, {list(held.expert_ids)}, found {expert}: ask another holder"
            )
        return {layer: experts[expert] for layer, experts in held.by_layer.items()}

    def held_in(self, layer: int) -> Mapping[int, Mlp]:
        """Return what is held of a MoE layer at this moment, by logical expert; it never changes.

        Experts that are about to go are in it, too.
        """
        return self._held.by_layer[layer]

    def hold(self, expert_ids: Sequence[int], progress: Progress | None = None) -> None:
        """Read experts and add each once all its layers are in; those that are held already stay. Safe beside `run`.

        Args:
            expert_ids: logical experts, in any order.
            progress: called after every expert of a layer.

        Raises:
            BadConfig: an id is out of range or given twice.
            NotEnoughMemory: they would take more than `spare_bytes`, and none was read; or a GPU is full.
            BadCheckpoint: the weights cannot be read; those that were complete before are held.

        Cost: blocks on the disk; computes in this thread only, so that those who run experts keep their cores.
        """
        wanted = _check_ids(self.config, expert_ids)
        with self._changing:
            new = tuple(expert for expert in wanted if expert not in self.expert_ids)
            self._check_room(len(new))
            try:
                self._add(new, progress, num_threads=1)
            except torch.OutOfMemoryError as error:
                raise NotEnoughMemory(
                    f"expected room on the GPU for experts {list(new)}, found it full: release others first"
                ) from error

    def release(self, expert_ids: Sequence[int], settle: Callable[[], None] = lambda: None) -> None:
        """Take work for experts no more, then drop them and give their memory back. Safe beside `run`.

        Args:
            expert_ids: held logical experts, in any order; others remain.
            settle: called in between; returns once work accepted before has been computed. What is computed after
                that without the experts it needs ends with StalePlacement.

        Raises:
            BadConfig: an id is given twice or not held, or none would remain.
        """
        gone = set(_check_ids(self.config, expert_ids))
        with self._changing:
            self._check_release(gone)
            self._held = self._held.without_work_for(gone)
            settle()
            self._held = self._held.without(gone)
        return_free_memory()

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return the experts' outputs [N, D], in the order of the tokens and on their device.

        Args:
            layer: a MoE layer of the model.
            hidden_ND: [N, D] in our dtype, sorted by expert, already multiplied by the scores; only read. On any
                device: tokens that came through the host's memory go to the weights, and their outputs come back, in
                one copy each.
            expert_ids: held logical experts, ascending.
            token_counts: rows for each of them; they sum to N.

        Raises:
            StalePlacement: an expert was released.
        """
        held = self._held.by_layer[layer]
        try:
            experts = [held[expert] for expert in expert_ids]
        except KeyError as error:
            raise StalePlacement(
                f"expected experts this replica holds, found {error} released: refresh the placement and send its "
                "tokens to a holder"
            ) from error
        return self._kernel.run(experts, token_counts, hidden_ND.to(self.device)).to(hidden_ND.device)

    def _add(
        self,
        expert_ids: tuple[int, ...],
        progress: Progress | None,
        num_threads: int | None = None,
        on_held: Callable[[ExpertWeights], None] = lambda weights: None,
    ) -> None:
        with returnable_blocks():
            for expert, by_layer in self._reader.read(expert_ids, progress, num_threads):
                self._held = self._held.with_expert(expert, by_layer)
                on_held(self)
        return_free_memory()

    def _check_room(self, num_experts: int) -> None:
        spare_bytes = self.spare_bytes
        needed_bytes = num_experts * self.weight_bytes // len(self.expert_ids)
        if spare_bytes is not None and needed_bytes > spare_bytes:
            raise NotEnoughMemory(
                f"expected room for {num_experts} experts of {needed_bytes} bytes, found {spare_bytes} bytes spare: "
                "release others first or give the replica more"
            )

    def _check_release(self, gone: set[int]) -> None:
        held = set(self.expert_ids)
        if missing := sorted(gone - held):
            raise BadConfig(f"expected held experts, {sorted(held)}, found {missing}: release only what is held")
        if gone == held:
            raise BadConfig(
                f"expected at least one expert to remain, found all of {sorted(held)} to be released: stop the replica "
                "instead"
            )


def _check_ids(config: ModelConfig, expert_ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids ascending."""
    if not config.is_moe:
        raise BadConfig("expected a model with routed experts, found a dense one: it needs no expert replicas")
    ids = tuple(sorted(expert_ids))
    wrong = [expert for expert in ids if not 0 <= expert < config.num_experts]
    if wrong:
        raise BadConfig(f"expected expert ids from 0 to {config.num_experts - 1}, found {wrong}: leave them out")
    if not ids or len(set(ids)) != len(ids):
        raise BadConfig(f"expected at least one expert, each id once, found {list(expert_ids)}: give each once")
    return ids
