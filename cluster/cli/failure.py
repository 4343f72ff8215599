"""How commands fail: one line on standard error and an exit code, no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from protos.errors import BadConfig, RequestError, ServingError

FAILED, MISUSED, INTERRUPTED = 1, 2, 130


@contextmanager
def explained() -> Iterator[None]:
    """Turn what Herd explains into a line and end the process: 2 where the command was wrong, else 1."""
    try:
        yield
    except ServingError as error:
        print(f"herd: {error.message}", file=sys.stderr)
        end(MISUSED if isinstance(error, BadConfig | RequestError) else FAILED)
    except KeyboardInterrupt:
        end(INTERRUPTED)
    except BrokenPipeError:  # `herd generate | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end(FAILED)


def end(code: int) -> None:
    """End the process at once: exit handlers of Ray would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
