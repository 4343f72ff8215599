"""Fields of OpenAI's and vLLM's APIs that Herd knows and cannot honour: refused, since ignoring them would mislead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.validation import invalid, shown

NEUTRAL_VALUES: Mapping[str, tuple[object, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "logit_bias": ({},),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "prompt_embeds": (),
    "truncate_prompt_tokens": (),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "documents": ([],),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
}
"""Values, beside null, that change nothing and are therefore accepted."""


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse a body that asks for what Herd does not do.

    Raises:
        InvalidRequest: a field would change the answer and is not supported.
    """
    for name, neutral in NEUTRAL_VALUES.items():
        value = body.get(name)
        if value is not None and not any(type(value) is type(each) and value == each for each in neutral):
            raise invalid(name, "nothing, as it is not supported", shown(value), "leave it out")
    # Without a ranking of more candidates than are returned, best_of is n.
    best_of, num_choices = body.get("best_of"), body.get("n")
    if best_of is not None and best_of != (1 if num_choices is None else num_choices):
        raise invalid("best_of", "n or nothing, as ranking is not supported", shown(best_of), "leave it out")
