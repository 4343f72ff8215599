"""Writes a Llama 4 checkpoint of Hugging Face's layout as a GGUF file for llama.cpp. Run by llama.cpp's Python.

What the architecture `llama4` of llama.cpp expects, and what it cannot be told:

- Query and key rows stay as they are: Llama 4's rotation pairs neighbours in both layouts.
- Experts are stacked [E, out, in], gate and up apart; Hugging Face fuses them as [E, in, gate | up].
- Chunks of 8192, a layer without rotation every 4th, temperature steps of 8192 by 0.1 and normalised queries and keys
  (except with 128 experts) are built in: a checkpoint that says otherwise is refused.

Norms and gates stay float32, as llama.cpp's own converter keeps them.

Source: llama.cpp's conversion/llama.py (class Llama4Model) and src/models/llama4.cpp, as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

FILE_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_BUILT_IN = {
    "attention_chunk_size": 8192,
    "no_rope_layer_interval": 4,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "tie_word_embeddings": False,
}
_DTYPES = {"F32": np.dtype("<f4"), "BF16": np.dtype("<u2")}

Array = NDArray[np.float32]


class Weights:
    """The tensors of a folder's safetensors files, by Hugging Face's names, read on demand as float32."""

    def __init__(self, folder: Path) -> None:
        self._stored: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                size = int.from_bytes(opened.read(8), "little")
                header = json.loads(opened.read(size))
            header.pop("__metadata__", None)
            self._stored |= {name: (file, 8 + size, stored) for name, stored in header.items()}

    def read(self, name: str) -> Array:
        """Return a tensor."""
        file, base, stored = self._stored[name]
        dtype, (start, stop) = _DTYPES[stored["dtype"]], stored["data_offsets"]
        raw = np.fromfile(file, dtype, (stop - start) // dtype.itemsize, offset=base + start)
        if stored["dtype"] == "BF16":  # the upper half of a float32
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.reshape(stored["shape"])


def export_gguf(folder: Path, file: Path, kind: str) -> None:
    """Write a checkpoint as one GGUF file, whole or not at all.

    Args:
        folder: the checkpoint.
        file: where to.
        kind: a key of FILE_TYPES: what matrices are stored as.
    """
    config = json.loads((folder / "config.json").read_text())
    _check(config)
    tensor_type, file_type = FILE_TYPES[kind]
    partial = file.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "llama4", use_temp_file=True)
    _add_config(writer, config)
    writer.add_file_type(file_type)
    for name, tensor in _tensors(Weights(folder), config):
        is_plain = tensor.ndim == 1 or "ffn_gate_inp" in name
        stored_as = gguf.GGMLQuantizationType.F32 if is_plain else tensor_type
        data = gguf.quants.quantize(np.ascontiguousarray(tensor), stored_as)
        writer.add_tensor(name, data, raw_dtype=stored_as)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(file)


def _check(config: dict[str, Any]) -> None:
    for key, built_in in _BUILT_IN.items():
        if config[key] != built_in:
            raise SystemExit(f"llama.cpp's llama4 has {key} {built_in} built in, found {config[key]}: use that")
    if config["rope_parameters"]["rope_type"] != "default" or config["interleave_moe_layer_step"] != 1:
        raise SystemExit("this export writes models without rope scaling and with experts in every layer only")


def _add_config(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name("random-llama4")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size_mlp"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_local_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_interleave_moe_layer_step(config["interleave_moe_layer_step"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def _tensors(weights: Weights, config: dict[str, Any]) -> Iterator[tuple[str, Array]]:
    """Yield every tensor by llama.cpp's name, in numpy's order of dimensions (GGUF names them in reverse)."""
    yield "token_embd.weight", weights.read("model.embed_tokens.weight")
    yield "output_norm.weight", weights.read("model.norm.weight")
    yield "output.weight", weights.read("lm_head.weight")
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"blk.{layer}", f"model.layers.{layer}"
        feed_forward = f"{theirs}.feed_forward"
        yield f"{ours}.attn_norm.weight", weights.read(f"{theirs}.input_layernorm.weight")
        yield f"{ours}.ffn_norm.weight", weights.read(f"{theirs}.post_attention_layernorm.weight")
        for part, name in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o")):
            yield f"{ours}.attn_{part}.weight", weights.read(f"{theirs}.self_attn.{name}_proj.weight")
        yield f"{ours}.ffn_gate_inp.weight", weights.read(f"{feed_forward}.router.weight")
        for part in ("gate", "up", "down"):
            yield f"{ours}.ffn_{part}_shexp.weight", weights.read(f"{feed_forward}.shared_expert.{part}_proj.weight")
        gate_up = weights.read(f"{feed_forward}.experts.gate_up_proj").swapaxes(1, 2)
        width = gate_up.shape[1] // 2
        yield f"{ours}.ffn_gate_exps.weight", gate_up[:, :width]
        yield f"{ours}.ffn_up_exps.weight", gate_up[:, width:]
        yield f"{ours}.ffn_down_exps.weight", weights.read(f"{feed_forward}.experts.down_proj").swapaxes(1, 2)


def main() -> None:
    """Write the files that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder of the checkpoint")
    parser.add_argument("file", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=list(FILE_TYPES), default="f32", help="of the matrices (f32)")
    options = parser.parse_args()
    export_gguf(options.checkpoint, options.file, options.type)


if __name__ == "__main__":
    main()
