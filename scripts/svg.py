"""A few shapes as SVG text that reads on light and dark pages: the picture brings its own background."""

from __future__ import annotations

import html
from collections.abc import Sequence

#: Class of a shape -> properties on a light page, on a dark page.
_STYLES = {
    "page": ("fill:#ffffff;stroke:#d0d7de", "fill:#0d1117;stroke:#30363d"),
    "ink": ("fill:#1f2328", "fill:#e6edf3"),
    "faint": ("fill:#59636e", "fill:#9198a1"),
    "plain": ("fill:#f6f8fa;stroke:#8c959f", "fill:#151b23;stroke:#656c76"),
    "student": ("fill:#ddf4ff;stroke:#0969da", "fill:#0f2440;stroke:#4493f8"),
    "teacher": ("fill:#fff1e5;stroke:#bc4c00", "fill:#35200f;stroke:#db6d28"),
    "loss": ("fill:#dafbe1;stroke:#1a7f37", "fill:#12301d;stroke:#3fb950"),
    "solid-student": ("fill:#54aeff;stroke:#0969da", "fill:#1f6feb;stroke:#4493f8"),
    "solid-teacher": ("fill:#fb8f44;stroke:#bc4c00", "fill:#bd561d;stroke:#db6d28"),
    "solid-loss": ("fill:#4ac26b;stroke:#1a7f37", "fill:#238636;stroke:#3fb950"),
    "off": ("fill:#ffffff;stroke:#d0d7de", "fill:#0d1117;stroke:#30363d"),
    "edge": ("fill:none;stroke:#59636e", "fill:none;stroke:#9198a1"),
    "edge-student": ("fill:none;stroke:#0969da", "fill:none;stroke:#4493f8"),
    "edge-teacher": ("fill:none;stroke:#bc4c00", "fill:none;stroke:#db6d28"),
    "edge-loss": ("fill:none;stroke:#1a7f37", "fill:none;stroke:#3fb950"),
    "tip": ("fill:#59636e", "fill:#9198a1"),
}
_FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"
_MONO = "ui-monospace,SFMono-Regular,Menlo,'DejaVu Sans Mono',monospace"


class Picture:
    """Shapes on a page of ``width`` x ``height`` pixels; coordinates begin at the upper left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._shapes: list[str] = []

    def box(self, x: float, y: float, width: float, height: float, kind: str = "plain", *, round_by: float = 6) -> None:
        """A rectangle."""
        self._shapes.append(f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" '
                            f'rx="{round_by:g}"/>')

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A circle."""
        self._shapes.append(f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def path(self, *points: tuple[float, float], kind: str = "edge", tip: bool = False, dashed: bool = False) -> None:
        """A line through points, with a tip at its end if wanted."""
        words = " ".join(f"{'ML'[i > 0]}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        extra = (' marker-end="url(#tip)"' if tip else "") + (' stroke-dasharray="5 4"' if dashed else "")
        self._shapes.append(f'<path class="{kind}" d="{words}"{extra}/>')

    def text(self, x: float, y: float, words: str, kind: str = "ink", *, size: float = 13, anchor: str = "start",
             bold: bool = False, mono: bool = False, turn: float = 0) -> None:
        """A line of text on the baseline ``y``."""
        more = (' font-weight="600"' if bold else "") + (f' font-family="{_MONO}"' if mono else "")
        more += f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
        self._shapes.append(f'<text class="{kind}" x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}"'
                            f'{more}>{html.escape(words, quote=False)}</text>')

    def card(self, x: float, y: float, width: float, kind: str, title: str, lines: Sequence[str] = ()) -> float:
        """A box with a title and lines below it; returns its height."""
        height = 30 + 18 * len(lines)
        self.box(x, y, width, height, kind)
        self.text(x + width / 2, y + 20, title, anchor="middle", bold=True)
        for number, line in enumerate(lines):
            self.text(x + width / 2, y + 39 + 18 * number, line, "faint", size=12, anchor="middle")
        return height

    def svg(self) -> str:
        """The file's text."""
        light = "".join(f".{name}{{{rule}}}" for name, (rule, _) in _STYLES.items())
        dark = "".join(f".{name}{{{rule}}}" for name, (_, rule) in _STYLES.items())
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="{_FONT}">',
            f"<title>{html.escape(self.title)}</title>",
            f"<style>{light}@media (prefers-color-scheme:dark){{{dark}}}</style>",
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            'orient="auto-start-reverse"><path class="tip" d="M0 0L10 5L0 10z"/></marker></defs>',
            f'<rect class="page" x="0.5" y="0.5" width="{self.width - 1}" height="{self.height - 1}" rx="8"/>',
            *self._shapes, "</svg>", ""])
