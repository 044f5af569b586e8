"""The page: the files of `assets/` and the data in one HTML document that loads nothing else."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
from pathlib import Path

from batchgen.ledger.events import to_plain
from batchgen.report.data import Page

_ASSETS = Path(__file__).parent / "assets"
# In the order in which they need each other.
_SCRIPTS = ("uPlot.iife.min", "dom", "sheet", "detail", "plots", "tables", "main")
_STYLES = ("uPlot.min", "page")
# So that no text in the data can end its element.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def html(page: Page) -> bytes:
    """The document. The browser runs its own scripts alone, named by their digest, and loads
    nothing but media below its folder."""
    scripts = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    parts = {
        "title": markup.escape(f"{page.about.run} — batchgen"),
        "digest": _digest(scripts),
        "styles": "\n".join(_asset(f"{name}.css") for name in _STYLES),
        "data": _json(page),
        "scripts": scripts,
    }
    pieces = _asset("page.html").split("@@")  # text, name, text, name, ... text
    filled = [parts[piece] if place % 2 else piece for place, piece in enumerate(pieces)]
    return "".join(filled).encode()


def _json(page: Page) -> str:
    text = json.dumps(to_plain(page), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


def _digest(script: str) -> str:
    """As a Content-Security-Policy names an inline script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
