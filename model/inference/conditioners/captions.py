"""Captions as LlamaGen's text encoder saw them in training: lower case, without addresses, markup and odd signs.

The rules of DeepFloyd IF's cleaning, applied twice, without the repair of broken encodings: plain prompts come out the
same, and so do nearly all others.
"""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

_ADDRESS = r"\b(?:(?:https?:(?:/{1,3}|[\w%])|www:|[\w.\-]+\.(?:com|co|ru|net|org|edu|gov|it)\b)[\w/\-.?=&%]*)"
_FILE = r"png|jpe?g|bmp|webp|eps|pdf|apk|mp4"
#: In this order: what is found, and what takes its place.
_RULES: tuple[tuple[str, str], ...] = (
    ("<person>", "person"), (_ADDRESS, ""), (r"<[^<>]*>", ""), (r"@\w+\b", ""),
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),  # CJK
    (r"[\u2010-\u2015\u2e3a\u2e3b\u2212\u301c\ufe58\uff0d\u058a\u05be-]+", "-"), (r"[`´«»“”¨]", '"'), (r"[‘’]", "'"),
    (r"&quot;?|&amp", ""), (r"\b\d{1,3}(?:\.\d{1,3}){3}\b", " "), (r"\d:\d\d\s+$", ""), (r"\\n", " "),
    (r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b", ""), (rf"\S+\.(?:{_FILE})", ""), (r"[\"']{2,}", '"'), (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "), (r"\s+\.\s+", " "),
)  # fmt: skip
_LATER: tuple[tuple[str, str], ...] = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b|\b[a-zA-Z]+\d+[a-zA-Z]+\b|\b\d+[a-zA-Z]+\d+\b", ""),  # article numbers
    (r"(?:worldwide\s+)?(?:free\s+)?shipping|(?:free\s)?download(?:\sfree)?|\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE})(?:\simages?)?\b|\bpage\s+\d+\b", ""), (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""), (r"\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "), (r"\s+", " "), (r"^[\"'](.+)[\"']$", r"\1"), (r"^['_,\-:;]|['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)  # fmt: skip


def clean_caption(text: str) -> str:
    """The caption that the text encoder reads."""
    return _once(_once(text))


def _once(text: str) -> str:
    text = unquote_plus(text).strip().lower()
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(text)).strip()
    for pattern, replacement in _LATER:
        text = re.sub(pattern, replacement, text)
    return text.strip()
