"""Where every weight of a model lies on disk, and reading exactly those bytes.

open_checkpoint reads configuration and headers only; what is wrong with a checkpoint is found there, not at the first
read. `Checkpoint.read` then touches just the byte ranges of the tensor it is asked for, so that a process that holds a
part of the experts reads that part.

    safetensors_header, torch_archive    what a file says it stores
    stored_tensor                        a tensor as it lies in a file; a block of it placed in one of ours
    source_table                         stored tensors by name, checked when asked for
    tensor_shapes                        our names and shapes
    codes, code_blocks                   weights kept in 8 or 4 bits, and put together from blocks as they are
    quantized_layout, meta_codes         how releases name and shape them
    hf_layout, meta_layout               our tensors out of theirs: slices, transposes, shards put side by side
    checkpoint                           the opened model
    kept_codes                           the same, with codes left as they are where those are multiplied
"""

from __future__ import annotations

from models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from models.checkpoint.kept_codes import KeptCodes, as_stored, kept_names

__all__ = ["Checkpoint", "KeptCodes", "as_stored", "kept_names", "open_checkpoint"]
