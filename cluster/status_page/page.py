"""The status page's files, and what a browser may do with them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import PurePath

from starlette.responses import Response

from protos.errors import NotFound

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    # Should a name from the cluster ever get into the page as code, the browser refuses to run it.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # after an upgrade, no file of the version before
}


def page_response(name: str) -> Response:
    """Return a file of the page.

    Raises:
        NotFound: there is none of that name.
    """
    texts = _texts()
    if name not in texts:
        raise NotFound(f"expected a file of the status page ({', '.join(sorted(texts))}), found {name!r}")
    return Response(texts[name], media_type=_TYPES[PurePath(name).suffix], headers=_HEADERS)


@cache
def _texts() -> dict[str, str]:
    """Return every file's text by its name: a few, and read once."""
    return {
        each.name: each.read_text(encoding="utf-8")
        for each in files(__package__).iterdir()
        if PurePath(each.name).suffix in _TYPES
    }
