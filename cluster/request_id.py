"""What a request is called: as its client says in `x-request-id`, or as the front door does."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass

HEADER = "x-request-id"
"""Of HTTP requests and answers, and of gRPC metadata both ways."""
_USABLE = re.compile(r"[\x21-\x7e]{1,128}")
"""No spaces and nothing that is not printed: names go into logs and headers as they are."""
_UNIQUE_CHARACTERS = 12


@dataclass(frozen=True, slots=True)
class RequestId:
    """A request's name."""

    value: str
    """As its client, its answer's header and the front door's log have it."""
    is_given: bool
    """Whether its client chose it: then it need not be unique."""

    def unique(self, prefix: str) -> str:
        """Return a name that no other request of the cluster has, with this one in it.

        Args:
            prefix: how names of an API begin.
        """
        suffix = f"-{uuid.uuid4().hex[:_UNIQUE_CHARACTERS]}" if self.is_given else ""
        return f"{prefix}-{self.value}{suffix}"


def request_id(given: str | bytes | None = None) -> RequestId:
    """Return a request's name.

    Args:
        given: what its client calls it; a new name takes the place of one that is missing or unusable.
    """
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    if text is not None and _USABLE.fullmatch(text):
        return RequestId(text, is_given=True)
    return RequestId(uuid.uuid4().hex, is_given=False)
