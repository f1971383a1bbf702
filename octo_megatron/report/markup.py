"""Small pieces of HTML; everything that comes from a run is escaped here or by the caller with `text`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any


class Html(str):
    """A string that already is HTML and is not escaped again."""


def text(value: Any) -> Html:
    return value if isinstance(value, Html) else Html(escape(str(value)))


def element(tag: str, content: Any, **attributes: str) -> Html:
    """<tag attributes>content</tag>; write class_ for class. Empty attributes are left out."""
    given = {key.rstrip("_"): value for key, value in attributes.items() if value}
    written = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    return Html(f"<{tag}{written}>{text(content)}</{tag}>")


def joined(parts: Sequence[Any], separator: str = "") -> Html:
    return Html(separator.join(text(part) for part in parts))


def table(
    head: Sequence[Any],
    rows: Sequence[Sequence[Any]],
    note: str = "",
    groups: Sequence[tuple[str, int]] = (),
    class_: str = "",
) -> Html:
    """A table whose first column names the row. Cells that are not Html are escaped.

    Args:
        groups: (title, columns spanned) of a row above the head.
    """
    top = element("tr", joined([element("th", cell, scope="col") for cell in head]))
    if groups:
        spans = [
            element("th", title, colspan=str(span), class_="group" if title else "blank")
            for title, span in groups
        ]
        top = joined([element("tr", joined(spans)), top])
    body = joined(
        [
            element(
                "tr", joined([element("th", row[0], scope="row"), *[element("td", cell) for cell in row[1:]]])
            )
            for row in rows
        ]
    )
    whole = element("table", joined([element("thead", top), element("tbody", body)]), class_=class_)
    return joined(
        [element("div", whole, class_="scroll"), element("p", note, class_="table-note") if note else ""]
    )


def dotted(name: str, colour: str) -> Html:
    """A name behind a dot of its colour."""
    return joined([Html(f'<span class="dot" style="background:{escape(colour)}"></span>'), name])


def picture(png: Path, alternative: str, caption: str) -> Html:
    """A figure with the PNG inside the page."""
    data = base64.b64encode(png.read_bytes()).decode("ascii")
    image = Html(f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}">')
    return element("figure", joined([image, element("figcaption", caption)]))
