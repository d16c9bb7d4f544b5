"""A prompt as DeepFloyd IF, PixArt and LlamaGen clean it before T5 reads it, so as their captions were in training."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_DOMAINS = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    r"\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0\uFE31\uFE32\uFE58"
    r"\uFE63\uFF0D"
)
_ADDRESSES = (
    ("<person>", "person"),
    (rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAINS}))", ""),
    (rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_DOMAINS}))", ""),
)
_SIGNS = (
    (r"@\w+\b", ""),
    (r"[\u31c0-\u9fff]+", ""),  # Chinese characters
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~)(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_ADVERTISEMENTS = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # the second x is the Cyrillic one  # noqa: RUF001
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_caption(text: str) -> str:
    """The text in small letters, without addresses, markup, Chinese characters, file names and advertisements.

    It is cleaned twice, as theirs is, so that what one turn uncovers the next removes.

    >>> clean_caption("A Fox &amp; a <b>red</b> #12 DOG.jpg -- www.example.com")
    'a fox a red -'
    """
    return _once(_once(text))


def _once(text: str) -> str:
    from ftfy import fix_text

    text = _replaced(unquote_plus(text).strip().lower(), _ADDRESSES)
    text = _replaced(_without_markup(text), _SIGNS)
    if len(re.findall("[-_]", text)) > 3:  # this-is-my-cute-cat
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(fix_text(text))).strip()
    return _replaced(text, _ADVERTISEMENTS).strip()


def _replaced(text: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in table:
        text = re.sub(pattern, replacement, text)
    return text


def _without_markup(text: str) -> str:
    """The text between tags, but that of scripts and styles."""
    parser = _Words(convert_charrefs=False)
    parser.feed(text)
    parser.close()
    return "".join(parser.words)


class _Words(HTMLParser):
    """Collects what BeautifulSoup calls the text of a page."""

    def __init__(self, *, convert_charrefs: bool) -> None:
        super().__init__(convert_charrefs=convert_charrefs)
        self.words: list[str] = []
        self.hidden = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("script", "style"):
            self.hidden = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self.hidden:
            self.hidden = ""

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    def handle_entityref(self, name: str) -> None:
        entity = html.unescape(f"&{name};")
        self.handle_data(f"&{name}" if entity == f"&{name};" else entity)

    def handle_charref(self, name: str) -> None:
        self.handle_data(html.unescape(f"&#{name};"))
