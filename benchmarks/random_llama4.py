"""Writes a Llama 4 text checkpoint of random weights, in Hugging Face's layout, that every engine can load.

The default is the benchmarks' model: 12 layers, hidden 768, 12 query and 4 key/value heads of 64, 16 experts of 1536
beside a shared one of the same width, every layer with experts, vocabulary 32,000: 790 million parameters, of which a
token uses 151 million and its embedding.

Every value is one that bfloat16 holds exactly, so that engines that load it as float32 and as bfloat16 start from the
same model. Each tensor is drawn from a generator of its own, seeded by its name: the shards can be written one layer
at a time, and equal settings give equal files. There is no tokenizer: the model is asked by token ids.

    python benchmarks/random_llama4.py /tmp/random-llama4
    python benchmarks/random_llama4.py /tmp/small --layers 4 --hidden 256 --experts 4 --expert-width 512
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WEIGHTS_STD = 0.02
# A token must stay recognisable beside what the layers add to it: with embeddings as small as the weights, all tokens
# look alike to the gates after a few layers, and a few experts get everything.
EMBEDDING_STD = 1.0
_STATED_IN = "random_llama4.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomLlama4:
    """Sizes of a random model, in the project's shape letters."""

    layers: int = 12
    """Decoder layers [L], all with routed experts."""
    hidden: int = 768
    """Width of the residual stream [D]."""
    heads: int = 12
    """Query heads [H]."""
    kv_heads: int = 4
    """Key/value heads [G]."""
    head_size: int = 64
    """Width of a head [C]."""
    experts: int = 16
    """Routed experts of a layer [E]; a token visits one."""
    expert_width: int = 1536
    """Inner width of a routed expert and of the shared one [F]."""
    vocab: int = 32_000
    """Tokens [V]."""
    attention_chunk: int = 8192
    """Tokens per chunk of the rotary layers' local attention."""
    nope_every: int = 4
    """Every so many layers, one attends globally and without rotation."""
    max_positions: int = 131_072
    """Longest context, in tokens."""
    seed: int = 0
    """Chooses the weights."""
    favoured: int = 0
    """1: tokens of the vocabulary's upper half visit expert 0 in every layer, the others never do, and each half is
    followed by its own: who asks decides how popular an expert is. 0: experts are about equally popular."""

    def num_parameters(self) -> int:
        """Return how many values all tensors hold."""
        return sum(torch.Size(shape).numel() for shard in self.shards().values() for shape in shard.values())

    def shards(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Return the shapes of all tensors by Hugging Face's names, by the file that holds them."""
        count = self.layers + 1
        files = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
        outer = {
            "model.embed_tokens.weight": (self.vocab, self.hidden),
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocab, self.hidden),
        }
        return {files[0]: outer} | {files[layer + 1]: dict(self._layer(layer)) for layer in range(self.layers)}

    def _layer(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        d, f, e, c = self.hidden, self.expert_width, self.experts, self.head_size
        name = f"model.layers.{layer}"
        yield f"{name}.input_layernorm.weight", (d,)
        yield f"{name}.self_attn.q_proj.weight", (self.heads * c, d)
        yield f"{name}.self_attn.k_proj.weight", (self.kv_heads * c, d)
        yield f"{name}.self_attn.v_proj.weight", (self.kv_heads * c, d)
        yield f"{name}.self_attn.o_proj.weight", (d, self.heads * c)
        yield f"{name}.post_attention_layernorm.weight", (d,)
        yield f"{name}.feed_forward.router.weight", (e, d)
        yield f"{name}.feed_forward.experts.gate_up_proj", (e, d, 2 * f)
        yield f"{name}.feed_forward.experts.down_proj", (e, f, d)
        yield f"{name}.feed_forward.shared_expert.gate_proj.weight", (f, d)
        yield f"{name}.feed_forward.shared_expert.up_proj.weight", (f, d)
        yield f"{name}.feed_forward.shared_expert.down_proj.weight", (d, f)

    def draw(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a tensor's values in bfloat16; norms are ones."""
        if len(shape) == 1:
            return torch.ones(shape, dtype=torch.bfloat16)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
        std = EMBEDDING_STD if name == "model.embed_tokens.weight" else WEIGHTS_STD
        values = torch.randn(shape, generator=generator) * std
        if self.favoured:
            self._favour(name, values)
        return values.to(torch.bfloat16)

    def _favour(self, name: str, values: Tensor) -> None:
        """Let a dimension of the residual stream say which half a token is of, and gates and LM head read it."""
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            size = 4 * EMBEDDING_STD if name.startswith("model") else 20 * WEIGHTS_STD
            values[:, 0] = size
            values[: self.vocab // 2, 0] *= -1
        elif name.endswith("feed_forward.router.weight"):
            values[:, 0] = 0
            values[0, 0] = 1

    def hf_config(self) -> dict[str, object]:
        """Return config.json."""
        rotary = [int((layer + 1) % self.nope_every != 0) for layer in range(self.layers)]
        return {
            "architectures": ["Llama4ForCausalLM"],
            "model_type": "llama4_text",
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "num_hidden_layers": self.layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "num_local_experts": self.experts,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 1,
            "moe_layers": list(range(self.layers)),
            "intermediate_size": self.expert_width,
            "intermediate_size_mlp": self.expert_width,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.max_positions,
            "attention_chunk_size": self.attention_chunk,
            "no_rope_layer_interval": self.nope_every,
            "no_rope_layers": rotary,
            "layer_types": ["chunked_attention" if rope else "full_attention" for rope in rotary],
            "use_qk_norm": True,
            "attn_temperature_tuning": True,
            "floor_scale": 8192,
            "attn_scale": 0.1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
        }


def write_random_llama4(folder: Path, model: RandomLlama4) -> None:
    """Write a checkpoint unless the folder already holds this one.

    Cost: draws every weight on one thread; memory for one layer in float32 and in bfloat16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stated = folder / _STATED_IN
    settings = json.dumps(asdict(model), indent=1)
    if stated.is_file() and stated.read_text() == settings:
        return
    stated.unlink(missing_ok=True)
    weight_map, total_bytes = {}, 0
    for file, shapes in model.shards().items():
        tensors = {name: model.draw(name, shape) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total_bytes += sum(tensor.nbytes for tensor in tensors.values())
        print(f"wrote {file}: {total_bytes / 1e9:.2f} GB", flush=True)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (folder / "config.json").write_text(json.dumps(model.hf_config(), indent=1))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    # Last: a folder that says what it holds is complete.
    stated.write_text(settings)


def main() -> None:
    """Write the checkpoint that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it")
    for name, value in asdict(RandomLlama4()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"({value})")
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    model = RandomLlama4(**options)
    write_random_llama4(folder, model)
    print(f"{folder}: {model.num_parameters() / 1e6:.0f} million parameters")


if __name__ == "__main__":
    main()
