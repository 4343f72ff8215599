"""What an engine can work with: limits that fit its model, requests that fit both."""

from __future__ import annotations

import torch

from models.config import ModelConfig
from protos import errors
from router.kv_cache.layout import CacheLayout
from router.limits import MOST_DISPATCH_BYTES, EngineLimits, most_step_tokens
from router.request import GenerationRequest
from router.sampling_bounds import check_sampling


def check_request(request: GenerationRequest, config: ModelConfig, longest: int) -> None:
    """Check a request against the model and the cache.

    Args:
        request: as submitted.
        config: of the model.
        longest: most tokens of prompt and output together that the engine's context and whole cache allow.

    Raises:
        InvalidRequest: a field is wrong.
        ContextTooLong: prompt and max_tokens exceed the context.
    """
    if not request.prompt_ids:
        raise errors.InvalidRequest("expected a prompt of at least one token, found none: send a prompt")
    for name, ids in (("prompt", request.prompt_ids), ("stop", request.stop_ids)):
        if bad := [token for token in ids if not 0 <= token < config.vocab_size]:
            raise errors.InvalidRequest(
                f"expected {name} token ids in [0, {config.vocab_size}), found {bad[0]}: use this model's tokenizer"
            )
    if request.max_tokens < 1:
        raise errors.InvalidRequest(f"expected max_tokens of at least 1, found {request.max_tokens}: raise it")
    for name, count in (("logprobs", request.logprobs), ("prompt_logprobs", request.prompt_logprobs)):
        if count is not None and count < 0:
            raise errors.InvalidRequest(f"expected {name} of at least 0, found {count}: raise it or leave it out")
    if not 0 <= request.num_replayed < len(request.prompt_ids):
        raise errors.InvalidRequest(
            f"expected num_replayed in [0, {len(request.prompt_ids)}), fewer than the prompt has tokens, found "
            f"{request.num_replayed}: send what the client asked for and then what was generated"
        )
    num_tokens = len(request.prompt_ids) + request.max_tokens
    if num_tokens > longest:
        raise errors.ContextTooLong(
            f"expected prompt and max_tokens within the context of {longest} tokens, found "
            f"{len(request.prompt_ids)} + {request.max_tokens}: shorten the prompt or lower max_tokens"
        )
    check_sampling(request.sampling)


def check_limits(limits: EngineLimits, layout: CacheLayout, dtype: torch.dtype) -> None:
    """Check limits against the model's cache and the dtype it computes in.

    Raises:
        BadConfig: they could not work.
    """
    if not 1 <= limits.slots <= limits.step_tokens:
        raise errors.BadConfig(
            f"expected 1 <= slots <= step_tokens, found {limits.slots} and {limits.step_tokens}: "
            "raise router.step_tokens"
        )
    if limits.page_tokens < 1:
        raise errors.BadConfig(
            f"expected pages of at least 1 token, found {limits.page_tokens}: raise router.page_tokens"
        )
    if not limits.prefill_stretch >= 1:
        raise errors.BadConfig(
            f"expected a prefill_stretch of at least 1, found {limits.prefill_stretch}: raise router.prefill_stretch"
        )
    most_tokens = most_step_tokens(layout.config, dtype.itemsize)
    if limits.step_tokens > most_tokens and not limits.experts_in_process:
        raise errors.BadConfig(
            f"expected a step's dispatch within {MOST_DISPATCH_BYTES} bytes, {most_tokens} tokens of this model, found "
            f"{limits.step_tokens} tokens: lower router.step_tokens"
        )
