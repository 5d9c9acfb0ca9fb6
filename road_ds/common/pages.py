"""HTML files that need nothing beside them: text is escaped, pictures are inside, nothing is fetched."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from road_ds.common.errors import legible
from road_ds.common.log import NUMBER

# The texts of rows are other people's: should one ever come through unescaped, it may neither run nor fetch.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 78em; padding: 0 1.2em; color: #222; background: #fff }
h1 { margin-bottom: .2em } h2 { margin-top: 2em; border-bottom: 2px solid #ddd; padding-bottom: .15em } h3 { margin: 1.4em 0 .3em }
.wide { overflow-x: auto } table { border-collapse: collapse; margin: .6em 0 1em }
td, th { padding: .25em .7em; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
th { color: #555; font-weight: 600; vertical-align: bottom } td p, td summary { overflow-wrap: anywhere }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
td p { margin: 0 0 .4em; white-space: pre-wrap } td > :last-child { margin-bottom: 0 } td.text { min-width: 20em } td.answer { min-width: 7em } td .note { font-size: 12px }
td:first-child { min-width: 7em } .settings td:first-child { min-width: 16em }
img, svg { max-width: 100%; height: auto } .note { color: #666 } .sure { font-weight: 600 } .warn { color: #9a3b00 }
.side { display: flex; flex-wrap: wrap; gap: 0 3em; align-items: flex-start }
nav a { margin-right: .7em } a { color: #0b57a4 }
"""


class Html(str):
    """Text that is markup already; any other is escaped."""

    __slots__ = ()


def html(value: Any) -> Html:
    """A value as markup: escaped, without characters that a reader acts on; nothing for None."""
    return value if isinstance(value, Html) else Html("" if value is None else escape(legible(str(value))))


def element(name: str, *inside: Any, **attributes: Any) -> Html:
    """An element around values; `class_` is its class."""
    given = "".join(f' {key.rstrip("_")}="{escape(str(value))}"' for key, value in attributes.items() if value)
    return Html(f"<{name}{given}>{''.join(map(html, inside))}</{name}>")


def document(title: str, *body: Any) -> str:
    """The whole file."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html(title)}</title><style>{STYLE}</style></head>{element('body', *body)}</html>\n"
    )


def table(rows: Iterable[Sequence[Any]], header: Sequence[Any]) -> Html:
    """A table; columns of numbers stand to the right."""
    body = [list(row) for row in rows]
    right = [
        any(row[i] not in (None, "") for row in body)
        and all(row[i] in (None, "") or NUMBER.fullmatch(str(row[i])) for row in body)
        for i in range(len(header))
    ]

    def line(name: str, cells: Sequence[Any]) -> Html:
        return element(
            "tr",
            *(
                cell
                if isinstance(cell, Html) and cell.startswith(f"<{name}")
                else element(name, cell, class_="n" if number else "", dir="" if number else "auto")
                for cell, number in zip(cells, right, strict=True)
            ),
        )

    whole = element("table", element("thead", line("th", header)), element("tbody", *(line("td", row) for row in body)))
    return element("div", whole, class_="wide")


def image(data: bytes, kind: str, alt: str) -> Html:
    """A picture inside the page; kind: its media type."""
    return Html(f'<img alt="{escape(alt)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">')


def shaded(value: Any, strength: float, color: str = "31, 119, 180") -> Html:
    """A cell of a table on a ground of its own; strength: from 0 to 1."""
    return element("td", value, class_="n", style=f"background: rgba({color}, {0.85 * min(max(strength, 0), 1):.2f})")


def bars(heights: Sequence[float], first: str, last: str, alt: str) -> Html:
    """A histogram: equally wide bars, with what the first begins and the last ends with below."""
    top, width = max([*heights, 1e-30]), 360 / max(1, len(heights))
    drawn = "".join(
        f'<rect x="{i * width:.1f}" y="{90 - 90 * h / top:.1f}" width="{max(width - 1, 1):.1f}" height="{90 * h / top:.1f}"/>'
        for i, h in enumerate(heights)
    )
    return Html(
        f'<svg viewBox="0 0 360 110" width="360" role="img" aria-label="{escape(alt)}"><g fill="#5a8fbd">{drawn}</g>'
        f'<line x1="0" y1="90" x2="360" y2="90" stroke="#999"/><g font-size="12" fill="#555"><text x="0" y="106">{html(first)}'
        f'</text><text x="360" y="106" text-anchor="end">{html(last)}</text></g></svg>'
    )


def scatter(points: Sequence[tuple[float, float]], across: str, up: str) -> Html:
    """Points, and the diagonal on which both values are equal."""
    low, high = min(min(p) for p in points), max(max(p) for p in points)
    scale = 280 / ((high - low) or 1)
    dots = "".join(
        f'<circle cx="{20 + (x - low) * scale:.1f}" cy="{300 - (y - low) * scale:.1f}" r="3"/>' for x, y in points
    )
    return Html(
        f'<svg viewBox="0 0 330 335" width="330" role="img" aria-label="{escape(up)} over {escape(across)}">'
        '<rect x="20" y="20" width="280" height="280" fill="none" stroke="#bbb"/>'
        f'<line x1="20" y1="300" x2="300" y2="20" stroke="#bbb"/><g fill="#1f77b4" fill-opacity=".45">{dots}</g>'
        f'<g font-size="12" fill="#555"><text x="20" y="316">{low:.4g}</text><text x="300" y="316" text-anchor="end">{high:.4g}'
        f'</text><text x="160" y="316" text-anchor="middle">{html(across)}</text>'
        f'<text transform="translate(14 160) rotate(-90)" text-anchor="middle">{html(up)}</text></g></svg>'
    )


def folded(text: str, shown: int = 280, most: int = 4000) -> Html:
    """A paragraph; of a long text the beginning, which opens to the rest."""
    whole = text if len(text) <= most else f"{text[:most]} [{len(text) - most:,} characters more]"
    if len(whole) <= shown:
        return element("p", whole, dir="auto")
    return element("details", element("summary", f"{whole[:shown]} …", dir="auto"), element("p", whole, dir="auto"))
