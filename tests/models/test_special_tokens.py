import pytest

from models.special_tokens import special_names

LLAMA4_IDS = {
    "<|begin_of_text|>": 200_000,
    "<|end_of_text|>": 200_001,
    "<|fim_suffix|>": 200_004,
    "<|header_start|>": 200_005,
    "<|header_end|>": 200_006,
    "<|eom|>": 200_007,
    "<|eot|>": 200_008,
    "<|step|>": 200_009,
    "<|text_post_train_reserved_special_token_5|>": 200_015,
    "<|python_start|>": 200_016,
    "<|python_end|>": 200_017,
    "<|finetune_right_pad|>": 200_018,
    "<|text_post_train_reserved_special_token_8|>": 200_019,
    "<|text_post_train_reserved_special_token_68|>": 200_079,
    "<|image_start|>": 200_080,
    "<|image_end|>": 200_081,
    "<|tile_x_separator|>": 200_084,
    "<|tile_y_separator|>": 200_085,
    "<|vision_reserved_special_token_5|>": 200_089,
    "<|image|>": 200_090,
    "<|patch|>": 200_092,
    "<|vision_reserved_special_token_1047|>": 201_133,
    "<|reasoning_reserved_special_token_7|>": 201_141,
    "<|reasoning_thinking_start|>": 201_142,
    "<|reasoning_thinking_end|>": 201_143,
    "<|reserved_special_token_0|>": 201_144,
    "<|reserved_special_token_903|>": 202_047,
}
LLAMA3_IDS = {
    "<|begin_of_text|>": 128_000,
    "<|end_of_text|>": 128_001,
    "<|finetune_right_pad_id|>": 128_004,
    "<|step_id|>": 128_005,
    "<|start_header_id|>": 128_006,
    "<|end_header_id|>": 128_007,
    "<|eom_id|>": 128_008,
    "<|eot_id|>": 128_009,
    "<|python_tag|>": 128_010,
    "<|image|>": 128_011,
    "<|reserved_special_token_2|>": 128_012,
    "<|reserved_special_token_245|>": 128_255,
}


@pytest.mark.parametrize(
    ("family", "first", "count", "expected"),
    [("llama4", 200_000, 2048, LLAMA4_IDS), ("llama", 128_000, 256, LLAMA3_IDS)],
)
def test_names_stand_at_the_ids_of_the_real_models(family, first, count, expected):
    names = special_names(family, count)

    assert len(names) == len(set(names)) == count
    assert {name: first + names.index(name) for name in expected} == expected


def test_a_small_vocabulary_keeps_the_names_that_chat_needs():
    names = special_names("llama4", 32)

    assert len(names) == 32
    assert {"<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>"} <= {
        *names
    }
    assert names == special_names("llama4", 2048)[:32]


@pytest.mark.parametrize(("family", "count"), [("llama4", 2048), ("llama", 256)])
def test_ids_past_the_last_name_stay_nameless(family, count):
    assert len(special_names(family, count + 100)) == count
