"""A document: headings, tables and pictures in one HTML file that needs nothing else, and no network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from typing import Final

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.plots import STYLE

_CSS: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8886; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0 1rem; }
th, td { padding: 0.2rem 0.8rem 0.2rem 0; text-align: left; border-bottom: 1px solid #8884; }
td { font-variant-numeric: tabular-nums; white-space: pre; }
figure { display: inline-block; margin: 0.5rem 1rem 0.5rem 0; max-width: 100%; }
figure img { max-width: 100%; height: auto; background: #fff; }
figcaption { font-size: 13px; opacity: 0.8; }
.against { border-left: 4px solid #d55e00; padding-left: 0.8rem; }
"""


class Document:
    """Built from top to bottom; `html` is the whole of it.

    Args:
        title: Its heading, and the window's.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        """Begin a section."""
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str, *, against: bool = False) -> None:
        """A paragraph; `against` marks what speaks against the figures."""
        mark = ' class="against"' if against else ""
        self._parts.append(f"<p{mark}>{escape(text)}</p>")

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
        body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        self._parts.append(f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>')

    def picture(self, caption: str, draw: Callable[[Axes], object]) -> None:
        """A plot with its caption; `draw` draws it into the axes that it is given."""
        with style.context(STYLE):
            figure = Figure()
            draw(figure.subplots())
            file = BytesIO()
            figure.savefig(file, format="png", metadata={"Software": None})
        data = b64encode(file.getvalue()).decode()
        self._parts.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def html(self) -> str:
        """The file."""
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(self._title)}</title>\n<style>{_CSS}</style>\n</head>\n"
            f"<body>\n{body}\n</body>\n</html>\n"
        )
