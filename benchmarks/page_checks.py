"""A check that schemathesis loads beside its own (SCHEMATHESIS_HOOKS): no schema says how much a context holds."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance


@schemathesis.check
def acceptance_within_the_context(ctx: Any, response: Any, case: Any) -> bool | None:
    """Requests that the page allows are served, unless they are too long for the model."""
    if response.status_code == 400:
        error = response.json()["error"]
        if error["code"] == "context_length_exceeded" or "prompts times n" in error["message"]:
            return None
    found: bool | None = positive_data_acceptance(ctx, response, case)
    return found
