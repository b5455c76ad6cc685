"""Renders chapters as one self-contained HTML page; the only user of Jinja2.

The template escapes every text, and the script's data are JSON that cannot close its element. The content security
policy allows only the page's own style and script, by their sha256, and inline images; nothing is fetched. The same
chapters give the same bytes.
"""

import base64
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from featcache.reporting.document import Card, Cards, Chapter, probability

_NAMED = re.compile(r'((?: id="| href="#|url\(#))f[0-9a-f]{8}-')  # ids of SVG parts, as written by `figures.charts`
GENERATOR = "featcache report"  # identifies a report
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Page:
    """The content of a page.

    Attributes:
        title: title of the window and of the page.
        about: names of the Runs.
        lead: summary below the title.
        chapters: one per Run, after a comparison of several.
        images: data of the images in maps, for the script.
        files: names of the PNG and CSV files.
        folder: their folder, relative to the page.
        made_by: version of featcache.
    """

    title: str
    about: str
    lead: str
    chapters: Sequence[Chapter]
    images: Sequence[Any]
    files: Sequence[str]
    folder: str
    made_by: str

    @property
    def has_neighbours(self) -> bool:
        """Whether some card has nearest images."""
        return any(card.neighbours for card in self._cards())

    @property
    def has_cam(self) -> bool:
        """Whether some card has a class activation map."""
        return any(card.cam for card in self._cards())

    def _cards(self) -> Iterator[Card]:
        for chapter in self.chapters:
            for section in chapter.sections:
                for block in section.blocks:
                    yield from block.cards if isinstance(block, Cards) else ()


def render(page: Page) -> str:
    """The page as HTML."""
    style, script = _text("page.css"), _text("page.js")
    policy = _POLICY.format(style=_sha256(style), script=_sha256(script))
    ours = {"style": Markup(style), "script": Markup(script)}  # noqa: S704  files of this package
    return _template().render(page=page, policy=policy, generator=GENERATOR, own_svg=_numbered(), **ours)


def _numbered() -> Callable[[str], Markup]:
    """Makes the ids of each chart unique within the page; equal charts have equal ids."""
    number = itertools.count(1)

    def renumber(svg: str) -> Markup:
        prefix = f"f{next(number)}-"
        named = re.sub(r"<[^<>]+>", lambda tag: _NAMED.sub(rf"\g<1>{prefix}", tag[0]), svg)  # texts are left alone
        return Markup(named)  # noqa: S704  of `charts`, where every text of it was escaped

    return renumber


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["probability"] = probability
    return environment.from_string(_text("page.html"))


def _text(name: str) -> str:
    return resources.files("featcache.reporting").joinpath(name).read_text("utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
