"""Takes secrets out of what is to be sent to others: those that are known, in every spelling they may have, and what looks like one."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

HIDDEN = "(removed)"
SHORTEST = 4
"""Bytes of a secret that is looked for: what is shorter would be found everywhere, and no CHAP secret may be."""

_IN_URL = re.compile(r"([a-z][a-z0-9+.-]*://[^\s/@:%]*)[:%][^\s/@]+@", re.IGNORECASE)
_NAMED = re.compile(
    r"""(?ix)\b ([\w$]*(?:secret|password|passwd|passphrase|token)|chap_[rc]) \b (["']?\s*[=:]\s*) ( "[^"\n]*" | '[^'\n]*' | [^\s,;"']+ )"""
)


class Scrubber:
    """Knows secrets; shows none."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        known = {secret for secret in secrets if len(secret) >= SHORTEST}
        spelled = {form for secret in known for form in _spellings(secret)}
        self._texts = sorted(spelled, key=len, reverse=True)  # the longest first: one may be part of another
        self._bytes = sorted({text.encode(errors="surrogateescape") for text in spelled}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """The text without them."""
        for secret in self._texts:
            text = text.replace(secret, HIDDEN)
        text = _IN_URL.sub(rf"\1:{HIDDEN}@", text)
        return _NAMED.sub(rf"\1\2{HIDDEN}", text)

    def data(self, data: bytes) -> bytes:
        """Bytes without them, as long as before."""
        for secret in self._bytes:
            data = data.replace(secret, b"*" * len(secret))
        return data

    def __repr__(self) -> str:
        return f"<Scrubber of {len(self._texts)} spellings>"


def _spellings(secret: bytes) -> set[str]:
    """As it is, escaped as JSON, Python and URLs do, and in hexadecimal and base64 digits."""
    plain, printable = secret.decode(errors="surrogateescape"), secret.decode(errors="backslashreplace")
    digits = base64.b64encode(secret).decode()
    as_json = {json.dumps(printable, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)}
    as_python = {repr(secret)[2:-1], repr(printable)[1:-1]}
    encoded = {quote(secret), quote(secret, safe=""), secret.hex(), secret.hex().upper(), digits, digits.rstrip("=")}
    return {plain, printable, *as_json, *as_python, *encoded}
