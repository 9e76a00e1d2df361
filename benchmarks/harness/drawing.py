"""Bars and lines as SVG, once for light and once for dark pages.

A picture is drawn with the colours of `COLOURS`' keys; the dark one is the same text with the values instead,
so that nothing else can differ. Lengths are in pixels of a picture that is `WIDTH` wide, text stays text, and
the same figures give the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from .results import Spread

WIDTH = 800

TEXT, MUTED, GRID = "#1f2328", "#59636e", "#d1d9e0"
OURS, PEER = "#0072b2", "#8c959f"
GREEN, VERMILION, PURPLE, OCHRE = "#00815e", "#c65700", "#a8487f", "#9a6a00"

# After Okabe and Ito: told apart with any kind of colour vision. Contrast to the page is 3 : 1 or more.
COLOURS = {
    TEXT: "#e6edf3",
    MUTED: "#9ea7b3",
    GRID: "#3a424c",
    OURS: "#56b4e9",
    PEER: "#7d8590",
    GREEN: "#2cc295",
    VERMILION: "#ff8f4d",
    PURPLE: "#e59ac6",
    OCHRE: "#e3b341",
}

_TITLE_SIZE, _TEXT_SIZE, _NOTE_SIZE = 21, 18, 15
_TOP = 44  # from the upper edge to the first panel: the title
_HEADING = 50  # above the bars or lines of a panel: what is shown, and which way is good
_ROW, _BAR = 29, 18
_LABELS = 242  # the column of names before the bars
_NOTE_LINE, _NOTE_CHARACTERS = 22, 86

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": _TEXT_SIZE,
    "svg.fonttype": "none",
    "svg.hashsalt": "asyncserver",
    "path.simplify": False,
    "text.color": TEXT,
}


@dataclass(frozen=True, slots=True)
class Panel:
    """What stands above bars or lines: a quantity, and which way is good."""

    quantity: str
    good: str
    write: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Row:
    """A name with one figure for each panel. `ours` is highlighted, `native` is only outlined."""

    name: str
    figures: tuple[Spread, ...]
    ours: bool = False
    native: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A name with points; told from the others by its dashes and markers as well as by its colour."""

    name: str
    points: tuple[tuple[float, float], ...]
    colour: str
    dashes: tuple[float, ...] = ()
    marker: str = ""
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale: places and what is written there."""

    ticks: tuple[tuple[float, str], ...]
    name: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A finished picture: the text of the light one."""

    name: str
    svg: str

    def write(self, folder: Path) -> list[Path]:
        """Write both variants into `folder`; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.name}-light.svg", folder / f"{self.name}-dark.svg"]
        paths[0].write_text(self.svg)
        paths[1].write_text(darkened(self.svg))
        return paths


def darkened(svg: str) -> str:
    """Return the picture in the colours for dark pages."""
    return re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], svg)


def bars(
    name: str, title: str, panels: Sequence[Panel], rows: Sequence[Row], notes: Sequence[str]
) -> Picture:
    """Draw one row of bars for each name, with the panels side by side."""
    with matplotlib.rc_context(_STYLE):
        drawing = _Drawing(title, _HEADING + len(rows) * _ROW, notes)
        gap = 16
        width = (WIDTH - _LABELS - gap * (len(panels) - 1)) / len(panels)
        for index, panel in enumerate(panels):
            left = _LABELS + index * (width + gap)
            drawing.heading(left, panel)
            axes = drawing.axes(left, _HEADING, width, len(rows) * _ROW)
            _draw_bars(axes, panel, [(row, row.figures[index]) for row in rows], width)
        for index, row in enumerate(rows):
            weight = "bold" if row.ours else "normal"
            middle = _HEADING + (index + 0.5) * _ROW
            drawing.text(
                _LABELS - 9, middle, row.name, weight=weight, color=OURS if row.ours else TEXT, ha="right"
            )
        return Picture(name, drawing.finish(name, _describe_rows(panels, rows, notes)))


def lines(
    name: str,
    title: str,
    panel: Panel,
    across: Axis,
    up: Axis,
    series: Sequence[Line],
    notes: Sequence[str],
) -> Picture:
    """Draw lines over a logarithmic scale, each with its name at its end."""
    with matplotlib.rc_context(_STYLE):
        height, below, scale, names = 430, 56, 60, 260
        drawing = _Drawing(title, _HEADING + height + below, notes)
        drawing.heading(0, panel)
        width = WIDTH - scale - names
        axes = drawing.axes(scale, _HEADING, width, height, "log")
        axes.set_xlim(across.ticks[0][0], across.ticks[-1][0])
        axes.set_ylim(up.ticks[0][0], up.ticks[-1][0])
        for place, text in up.ticks:
            axes.axhline(place, color=GRID, linewidth=1, zorder=1)
            drawing.text(
                scale - 8, _HEADING + _down(axes, place), text, color=MUTED, ha="right", size=_NOTE_SIZE
            )
        for place, text in across.ticks:
            position = scale + width * _share(across, place)
            drawing.text(position, _HEADING + height + 18, text, color=MUTED, ha="center", size=_NOTE_SIZE)
        drawing.text(
            scale + width / 2, _HEADING + height + 42, across.name, color=MUTED, ha="center", size=_NOTE_SIZE
        )
        for line in series:
            _draw_line(axes, line)
        _name_lines(drawing, axes, series, scale, scale + width)
        return Picture(name, drawing.finish(name, _describe_lines(panel, across, series, notes)))


class _Drawing:
    """A figure in which places are pixels from the upper left corner below the title."""

    def __init__(self, title: str, height: float, notes: Sequence[str]) -> None:
        self.title = title
        written = [line for note in notes for line in textwrap.wrap(note, _NOTE_CHARACTERS)]
        self.height = _TOP + height + 26 + _NOTE_LINE * len(written)
        self.figure = Figure(figsize=(WIDTH / 72, self.height / 72), dpi=72)
        self.figure.patch.set_visible(False)
        FigureCanvasSVG(self.figure)
        self.text(0, 16 - _TOP, title, size=_TITLE_SIZE, weight="bold")
        for number, line in enumerate(written):
            self.text(0, height + 20 + number * _NOTE_LINE, line, size=_NOTE_SIZE, color=MUTED)

    def text(self, left: float, top: float, words: str, **style: Any) -> None:
        place = (left / WIDTH, 1 - (_TOP + top) / self.height)
        self.figure.text(*place, words, **{"va": "center_baseline", "size": _TEXT_SIZE, **style})

    def heading(self, left: float, panel: Panel) -> None:
        self.text(left, 8, panel.quantity, weight="bold")
        self.text(left, 31, panel.good, color=MUTED, size=_NOTE_SIZE)

    def axes(self, left: float, top: float, width: float, height: float, scale: str = "linear") -> Axes:
        bottom = self.height - _TOP - top - height
        axes = self.figure.add_axes(
            (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height), frameon=False
        )
        axes.set_yscale(scale)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(NullLocator())
            axis.set_minor_locator(NullLocator())
        return axes

    def stroke(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        places = [(left / WIDTH, 1 - (_TOP + top) / self.height) for left, top in (start, end)]
        stroke = Line2D(*zip(*places, strict=True), color=colour, linewidth=1)
        self.figure.add_artist(stroke)

    def finish(self, name: str, description: str) -> str:
        buffer = io.StringIO()
        unwanted = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=unwanted, transparent=True)
        return _accessible(buffer.getvalue(), name, self.title, description, self.height)


def _accessible(svg: str, name: str, title: str, description: str, height: float) -> str:
    """Return what matplotlib wrote with a name and a description, and with the reader's own font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans', sans-serif", "sans-serif")
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" version="1.1" '
        f'width="{WIDTH}" height="{height:g}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">\n'
        f' <title id="{name}-title">{escape(title)}</title>\n'
        f' <desc id="{name}-desc">{escape(description)}</desc>'
    )
    return re.sub(r"<svg [^>]*>", lambda _: head, svg, count=1)


def _draw_bars(axes: Axes, panel: Panel, figures: Sequence[tuple[Row, Spread]], width: float) -> None:
    room = 80  # for the figure behind the longest bar
    axes.set_xlim(0, max(figure.maximum for _, figure in figures) * width / (width - room))
    axes.set_ylim(len(figures) * _ROW, 0)
    axes.axvline(0, color=MUTED, linewidth=1.5)
    for index, (row, figure) in enumerate(figures):
        middle = (index + 0.5) * _ROW
        colour = OURS if row.ours else PEER
        fill = "none" if row.native else colour
        axes.barh(middle, figure.median, _BAR, color=fill, edgecolor=colour, linewidth=1.5)
        _draw_range(axes, figure, middle)
        text = panel.write(figure.median)
        weight = "bold" if row.ours else "normal"
        axes.annotate(
            text,
            (figure.maximum, middle),
            (6, 0),
            textcoords="offset points",
            va="center_baseline",
            weight=weight,
            annotation_clip=False,
        )


def _draw_range(axes: Axes, figure: Spread, middle: float) -> None:
    """Draw the smallest and the largest round."""
    if figure.minimum == figure.maximum:
        return
    first, last = figure.minimum, figure.maximum
    gap, upper, lower = math.nan, middle - 4, middle + 4
    axes.plot(
        (first, first, gap, first, last, gap, last, last),
        (upper, lower, gap, middle, middle, gap, upper, lower),
        color=TEXT,
        linewidth=1.5,
    )


def _draw_line(axes: Axes, line: Line) -> None:
    style = (0, line.dashes) if line.dashes else "-"
    axes.plot(
        *zip(*line.points, strict=True),
        color=line.colour,
        linewidth=3.5 if line.ours else 2,
        linestyle=style,
        marker=line.marker,
        markersize=8 if line.ours else 7,
        clip_on=False,
        zorder=3 if line.ours else 2,
    )


def _name_lines(drawing: _Drawing, axes: Axes, series: Sequence[Line], left: float, right: float) -> None:
    """Write each name beside the end of its line, or as near as the others allow, and lead to it."""
    box = axes.get_window_extent()
    ends = [axes.transData.transform(line.points[-1]) - (box.x0, box.y1) for line in series]
    places = spaced([-below for _, below in ends], 24, box.height)
    for line, (across, below), place in zip(series, ends, places, strict=True):
        weight = "bold" if line.ours else "normal"
        drawing.stroke((left + across + 7, _HEADING - below), (right + 24, _HEADING + place), line.colour)
        drawing.text(right + 28, _HEADING + place, line.name, color=line.colour, weight=weight)


def spaced(places: Sequence[float], distance: float, limit: float) -> list[float]:
    """Return the places moved apart to `distance` at least, in the same order, between 0 and `limit`.

    Groups that are too close are spread around their middle.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        groups.append([index])
        while len(groups) > 1 and _start(groups[-1], places, distance, limit) < distance + _end(
            groups[-2], places, distance, limit
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(places)
    for group in groups:
        start = _start(group, places, distance, limit)
        for number, index in enumerate(group):
            moved[index] = start + number * distance
    return moved


def _start(group: Sequence[int], places: Sequence[float], distance: float, limit: float) -> float:
    length = (len(group) - 1) * distance
    middle = sum(places[index] for index in group) / len(group)
    return max(0.0, min(limit - length, middle - length / 2))


def _end(group: Sequence[int], places: Sequence[float], distance: float, limit: float) -> float:
    return _start(group, places, distance, limit) + (len(group) - 1) * distance


def _down(axes: Axes, value: float) -> float:
    """Return how far below the upper edge of the axes the value is."""
    box = axes.get_window_extent()
    return float(box.y1 - axes.transData.transform((axes.get_xlim()[0], value))[1])


def _share(axis: Axis, place: float) -> float:
    first, last = axis.ticks[0][0], axis.ticks[-1][0]
    return (place - first) / (last - first)


def _describe_rows(panels: Sequence[Panel], rows: Iterable[Row], notes: Sequence[str]) -> str:
    parts = [
        f"{row.name}: "
        + ", ".join(_figure_text(panel, figure) for panel, figure in zip(panels, row.figures, strict=True))
        for row in rows
    ]
    return _sentences([*(f"{panel.quantity}, {panel.good}" for panel in panels), *parts, *notes])


def _figure_text(panel: Panel, figure: Spread) -> str:
    ends = f" ({panel.write(figure.minimum)} to {panel.write(figure.maximum)})"
    return panel.write(figure.median) + (ends if figure.minimum != figure.maximum else "")


def _describe_lines(panel: Panel, across: Axis, series: Iterable[Line], notes: Sequence[str]) -> str:
    names = dict(across.ticks)
    parts = [f"{line.name}: " + ", ".join(_points_text(panel, names, line)) for line in series]
    return _sentences([f"{panel.quantity}, {panel.good}", *parts, *notes])


def _points_text(panel: Panel, names: dict[float, str], line: Line) -> Iterator[str]:
    for place, value in line.points:
        if place in names:
            yield f"{panel.write(value)} at {names[place]}"


def _sentences(parts: Iterable[str]) -> str:
    return " ".join(f"{part.rstrip('.')}." for part in parts)
