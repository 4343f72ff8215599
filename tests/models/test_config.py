"""Configurations: what published files say, in every spelling, and what is refused."""

import logging

import pytest

from models.generation_config import GenerationDefaults, load_generation_defaults
from models.hf_config import read_hf_config
from models.meta_config import read_meta_config
from models.presets import MAVERICK, SCOUT, resolve_model
from protos.errors import BadConfig
from tests.models.checkpoint_files import HF_FIELDS, META_FIELDS, write_json
from tests.models.published_configs import (
    GUARD_TEXT,
    MAVERICK_PARAMS,
    MAVERICK_TEXT,
    SCOUT_PARAMS,
    SCOUT_TEXT,
    multimodal,
)

LLAMA = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_hf(folder, fields):
    write_json(folder / "config.json", fields)
    return read_hf_config(folder)


def read_meta(folder, fields, **known):
    write_json(folder / "params.json", fields)
    return read_meta_config(folder, **known)


@pytest.mark.parametrize(("text", "preset"), [(SCOUT_TEXT, SCOUT), (MAVERICK_TEXT, MAVERICK)])
def test_presets_equal_the_published_config_files(tmp_path, text, preset):
    assert read_hf(tmp_path, multimodal(text)) == preset
    assert read_hf(tmp_path, text) == preset


@pytest.mark.parametrize(("params", "preset"), [(SCOUT_PARAMS, SCOUT), (MAVERICK_PARAMS, MAVERICK)])
def test_presets_equal_the_published_params_files(tmp_path, params, preset):
    assert read_meta(tmp_path, params) == preset
    assert read_meta(tmp_path, {"model": params}) == preset


def test_guard_is_dense_rotary_and_global(tmp_path):
    config = read_hf(tmp_path, multimodal(GUARD_TEXT))
    assert (config.moe_layers, config.nope_layers, config.attention_chunk) == ((), (), None)
    assert (config.dense_width, config.num_experts, config.expert_width) == (8192, 0, 0)
    assert not any(config.is_local(layer) for layer in range(48))


def test_guard_params_give_the_narrow_dense_layers(tmp_path):
    nulls = {"moe_args": None, "nope_layer_interval": None, "attention_chunk_size": None}
    config = read_meta(tmp_path, SCOUT_PARAMS | nulls | {"ffn_exp": 2.0})
    assert (config.dense_width, config.moe_layers, config.nope_layers) == (8192, (), ())
    assert not config.attn_temperature


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"attn_temperature_tuning": 4}, "attn_temperature", True),
        ({"attn_temperature_tuning": 0}, "attn_temperature", False),
        ({}, "nope_layers", (3,)),
        ({"no_rope_layers": []}, "nope_layers", (3,)),
        ({"no_rope_layers": None}, "nope_layers", (3,)),
        ({"no_rope_layers": [1, 0, 1, 1]}, "nope_layers", (1,)),
        ({"no_rope_layers": [1, 1, 1, 1]}, "nope_layers", ()),
        ({"no_rope_layer_interval": 2}, "nope_layers", (1, 3)),
        ({}, "moe_layers", (1, 3)),
        ({"interleave_moe_layer_step": 1}, "moe_layers", (0, 1, 2, 3)),
        ({"interleave_moe_layer_step": 0}, "moe_layers", ()),
        ({"moe_layers": [2]}, "moe_layers", (2,)),
        ({"moe_layers": []}, "num_experts", 0),
        ({"attention_chunk_size": None}, "attention_chunk", None),
        ({"layer_types": ["full_attention"] * 4}, "attention_chunk", None),
        ({"layer_types": ["chunked_attention"] * 3 + ["full_attention"]}, "attention_chunk", 8),
        ({"head_dim": None}, "head_size", 8),
        ({"num_key_value_heads": None}, "num_kv_heads", 4),
        ({"eos_token_id": [5, 6]}, "eos_ids", (5, 6)),
        ({"eos_token_id": None}, "eos_ids", ()),
        ({"pad_token_id": -1}, "pad_id", None),
        ({"tie_word_embeddings": True}, "tie_embeddings", True),
        ({"dtype": "float16"}, "dtype", "float16"),
        ({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}, "rope_theta", 7.0),
        ({"rope_scaling": {"type": "default"}}, "rope_scaling", None),
    ],
)
def test_every_published_spelling_is_read(tmp_path, changes, field, expected):
    assert getattr(read_hf(tmp_path, HF_FIELDS | changes), field) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": SCALING | {"rope_type": "llama3"}, "rope_theta": 5e5},
        {"rope_scaling": SCALING | {"type": "llama3"}, "rope_theta": 5e5},
        {"rope_parameters": SCALING | {"rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_rope_scaling_reads_alike_in_all_spellings(tmp_path, changes):
    config = read_hf(tmp_path, LLAMA | changes)
    assert config.rope_theta == 5e5
    assert (config.rope_scaling.factor, config.rope_scaling.high_freq_factor) == (8.0, 4.0)
    assert config.rope_scaling.original_max_positions == 8192


def test_dense_llama_gets_transformers_defaults_and_half_rotation(tmp_path):
    config = read_hf(tmp_path, LLAMA)
    assert (config.num_kv_heads, config.head_size, config.norm_eps, config.rope_theta) == (4, 16, 1e-6, 1e4)
    assert not config.rope_interleaved
    assert not config.is_moe


def test_generation_config_has_the_last_word_on_end_tokens(tmp_path):
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [3, 4], "bos_token_id": None})
    config = read_hf(tmp_path, HF_FIELDS)
    assert (config.bos_id, config.eos_ids) == (1, (3, 4))


def test_scouts_first_rope_scaling_is_read_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        config = read_hf(tmp_path, HF_FIELDS | {"rope_scaling": SCALING | {"rope_type": "llama3"}})
    assert config.rope_scaling.factor == 8.0
    assert "16 and 1" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mllama"}, "model_type llama4, llama4_text or llama, found 'mllama'"),
        ({"model_type": None}, "model_type to be a string, found None"),
        ({"model_type": "llama4"}, "text_config"),
        ({"hidden_act": "gelu"}, "hidden_act to be 'silu'"),
        ({"attention_bias": True}, "no attention_bias"),
        ({"quantization_config": {"quant_method": "awq"}}, "found awq, which is not read"),
        ({"hidden_size": 0}, "hidden_size to be a whole number from 1"),
        ({"hidden_size": -32}, "hidden_size"),
        ({"hidden_size": 32.5}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size to be a whole number from 1 to 2147483647, found '32'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_local_experts": 10**9}, "num_local_experts"),
        ({"vocab_size": None}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads to be a divisor of the 4 query heads"),
        ({"num_attention_heads": 5, "head_dim": None}, "num_attention_heads to be a divisor of hidden_size 32"),
        ({"head_dim": 7}, "head_dim to be even"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok to be from 1 to the 4 experts"),
        ({"num_local_experts": 0}, "num_local_experts to be at least 1"),
        ({"moe_layers": [4]}, "moe_layers"),
        ({"moe_layers": [1, 1]}, "moe_layers to be ascending"),
        ({"no_rope_layers": [1, 1]}, "no_rope_layers to be one 0 or 1 for each of the 4 layers"),
        ({"no_rope_layers": [2, 1, 1, 0]}, "no_rope_layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.rope_type to be 'llama3' or 'default'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": SCALING | {"rope_type": "llama3", "factor": 0.5}}, "factor to be a number of at least 1"),
        ({"rope_scaling": SCALING | {"rope_type": "llama3", "low_freq_factor": 9.0}}, "rope_scaling"),
        ({"rms_norm_eps": float("nan")}, "NaN is not a JSON number"),
        ({"rope_theta": float("inf")}, "Infinity is not a JSON number"),
        ({"eos_token_id": 96}, "eos_token_id to be token ids below the vocabulary's 96"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"torch_dtype": "int8"}, "torch_dtype"),
        ({"attn_temperature_tuning": "yes"}, "attn_temperature_tuning to be true or false"),
    ],
)
def test_an_unusable_config_is_refused_by_file_and_key(tmp_path, changes, words):
    with pytest.raises(BadConfig) as refused:
        read_hf(tmp_path, HF_FIELDS | changes)
    assert words in refused.value.message
    assert str(tmp_path / "config.json") in refused.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a JSON object"),
        ("[1]", "a list instead of an object"),
        ('{"a": 1, "a": 2}', "key 'a' occurs twice"),
        ('{"rope_theta": 1e999}', "1e999 does not fit a float"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_strict_json_is_refused(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadConfig, match=words):
        read_hf_config(tmp_path)


def test_every_golden_config_is_read_and_mllama_is_refused(shared_dir):
    goldens = shared_dir / "goldens"
    families = {name: read_hf_config(goldens / name).family for name in ("scout", "guard", "mm", "llama1", "llama32")}
    assert families == {"scout": "llama4", "guard": "llama4", "mm": "llama4", "llama1": "llama", "llama32": "llama"}
    assert read_hf_config(goldens / "guard").attention_chunk is None
    assert read_hf_config(goldens / "llama32").tie_embeddings
    with pytest.raises(BadConfig, match=r"Llama 3\.2 Vision"):
        read_hf_config(goldens / "mllama")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # (dense width, context, rope factor, end tokens) of the published models.
        ({"dim": 4096, "n_heads": 32, "norm_eps": 1e-6, "vocab_size": 32000}, (11008, 2048, None, (2,))),
        ({"dim": 4096, "n_heads": 32, "vocab_size": 32000}, (11008, 4096, None, (2,))),
        (
            {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3, "multiple_of": 4096},
            (28672, 4096, None, (2,)),
        ),
        (
            {"dim": 8192, "n_heads": 64, "n_kv_heads": 8, "multiple_of": 256, "rope_theta": 1e6},
            (22016, 16384, None, (2,)),
        ),
        (
            {"dim": 4096, "n_heads": 32, "n_kv_heads": 8, "ffn_dim_multiplier": 1.3, "multiple_of": 1024}
            | {"rope_theta": 5e5, "vocab_size": 128256},
            (14336, 8192, None, (128001, 128008, 128009)),
        ),
        (
            {"dim": 16384, "n_heads": 128, "n_kv_heads": 8, "ffn_dim_multiplier": 1.2, "multiple_of": 4096}
            | {"rope_theta": 5e5, "vocab_size": 128256, "use_scaled_rope": True},
            (53248, 131072, 8.0, (128001, 128008, 128009)),
        ),
        (
            {"dim": 2048, "n_heads": 32, "n_kv_heads": 8, "ffn_dim_multiplier": 1.5, "multiple_of": 256}
            | {"rope_theta": 5e5, "vocab_size": 128256, "use_scaled_rope": True},
            (8192, 131072, 32.0, (128001, 128008, 128009)),
        ),
    ],
    ids=["llama1", "llama2-7b", "llama2-70b", "codellama-34b", "llama3-8b", "llama3.1-405b", "llama3.2-1b"],
)
def test_meta_params_of_dense_llamas_are_completed(tmp_path, fields, expected):
    config = read_meta(tmp_path, {"n_layers": 2, "vocab_size": 32000} | fields)
    factor = config.rope_scaling.factor if config.rope_scaling else None
    assert (config.dense_width, config.max_positions, factor, config.eos_ids) == expected
    assert config.rope_interleaved
    assert config.family == "llama"


@pytest.mark.parametrize("name", ["scout", "maverick", "top2"])
def test_meta_params_completed_by_the_config_above_equal_it(shared_dir, name):
    folder = shared_dir / "goldens" / name
    published = read_hf_config(folder)
    assert published.dtype == "float32"
    assert read_meta_config(folder / "meta").rope_scaling == published.rope_scaling
    assert read_meta_config(folder / "meta").eos_ids == published.eos_ids
    assert read_meta_config(folder / "meta").expert_width == published.expert_width


def test_meta_params_take_nothing_from_another_models_config(tmp_path):
    write_json(tmp_path / "config.json", HF_FIELDS | {"hidden_size": 64, "eos_token_id": 7})
    (tmp_path / "original").mkdir()
    assert read_meta(tmp_path / "original", META_FIELDS).eos_ids == ()


def test_meta_vocabulary_is_counted_where_the_file_does_not_say(tmp_path):
    assert read_meta(tmp_path, META_FIELDS | {"vocab_size": -1}, vocab_size=96).vocab_size == 96
    assert read_meta(tmp_path, META_FIELDS | {"vocab_size": 90}, vocab_size=96).vocab_size == 96
    assert read_meta(tmp_path, META_FIELDS | {"vocab_size": 99}, vocab_size=96).vocab_size == 99
    with pytest.raises(BadConfig, match="vocab_size"):
        read_meta(tmp_path, META_FIELDS | {"vocab_size": -1})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 0}, "dim to be a whole number"),
        ({"moe_args": {"top_k": 1}}, "moe_args.num_experts"),
        ({"moe_args": {"num_experts": 4, "top_k": 5}}, "moe_args.top_k to be from 1 to the 4 experts"),
        ({"n_kv_heads": 3}, "n_kv_heads to be a divisor"),
        ({"quantization_args": {"scheme": "int4"}}, "quantised"),
        ({"vision_num_cross_attention_layers": 8}, "Llama 3.2 Vision"),
        ({"vocab_size": 0.5}, "vocab_size to be a whole number"),
        ({"ffn_dim_multiplier": float("nan")}, "NaN is not a JSON number"),
    ],
)
def test_unusable_meta_params_are_refused_by_file_and_key(tmp_path, changes, words):
    with pytest.raises(BadConfig) as refused:
        read_meta(tmp_path, META_FIELDS | changes, vocab_size=96)
    assert words in refused.value.message
    assert "params.json" in refused.value.message


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (None, GenerationDefaults()),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, GenerationDefaults(temperature=0.6, top_p=0.9)),
        ({"top_k": 50}, GenerationDefaults(top_k=50)),
        ({"top_k": 0, "temperature": None}, GenerationDefaults()),
    ],
)
def test_generation_defaults_are_the_files_or_plain_sampling(tmp_path, fields, expected):
    if fields is not None:
        write_json(tmp_path / "generation_config.json", fields)
    assert load_generation_defaults(tmp_path) == expected


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -3}, {"top_k": 1.5}])
def test_generation_defaults_out_of_range_are_refused(tmp_path, fields):
    write_json(tmp_path / "generation_config.json", fields)
    with pytest.raises(BadConfig, match=next(iter(fields))):
        load_generation_defaults(tmp_path)


def test_a_model_is_a_folder_or_the_name_demo(tmp_path, demo_dir):
    write_json(tmp_path / "config.json", HF_FIELDS)
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("demo") == resolve_model() == demo_dir


def test_a_folder_that_does_not_exist_is_answered_with_close_matches(tmp_path):
    (tmp_path / "scout-instruct").mkdir()
    with pytest.raises(BadConfig, match=r"did you mean .*/scout-instruct"):
        resolve_model(str(tmp_path / "scout-instrukt"))
    with pytest.raises(BadConfig, match="did you mean demo"):
        resolve_model("demmo")


def test_a_folder_without_a_model_is_answered_with_the_one_inside(tmp_path):
    (tmp_path / "snapshot").mkdir()
    write_json(tmp_path / "snapshot" / "params.json", META_FIELDS)
    with pytest.raises(BadConfig, match=r"config.json or params.json, found neither: did you mean .*/snapshot"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_the_name_of_an_architecture_asks_for_its_weights(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadConfig, match="download the weights"):
        resolve_model(name)
