"""The values that a figure shows, read off it: as CSV to compute with, and in words for who cannot see it.

Lines, bands, bars, points and heat maps are read, each with the label that a legend has for it, or with its gid. A line that only
guides the eye, a unit circle say, is drawn with `gid=GUIDE` and left out; so are axhline and axvline.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

GUIDE = "guide"
_COLUMNS = ("panel", "x is", "y is", "series", "x", "y", "low", "high", "value")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")  # how a cell begins that a spreadsheet would compute
_UNNAMED = "line "  # before the number of a line that has no label
_NAMED = 12  # panels and lines that a description names


class Value(NamedTuple):
    """Attributes: label of the line, place, height with its interval where it has one; value of a cell or of a point's colour."""

    series: str
    x: float | str
    y: float | None
    low: float | None = None
    high: float | None = None
    value: float | None = None


class Panel(NamedTuple):
    """Attributes: title, what x and y are, the kind of drawing (empty for pictures, which have no values), and its values."""

    title: str
    x: str
    y: str
    kind: str
    values: list[Value]


def panels(figure: Figure) -> list[Panel]:
    """What each panel of a figure shows. A panel without a title or label of its own has that of its column or row."""
    below, beside, drawn = figure.get_supxlabel(), figure.get_supylabel(), []

    def label(axis: Axes, which: str, span: str, otherwise: str = "") -> str:
        alike = [one for one in figure.axes if _place(one, span) == _place(axis, span)]
        texts = (getattr(one, f"get_{which}")() for one in (axis, *alike))
        return " ".join(next((text for text in texts if text), otherwise).split())

    for axis in (one for one in figure.axes if one.get_visible() and one.get_label() != "<colorbar>"):
        title, x, y = label(axis, "title", "col"), label(axis, "xlabel", "col", below), label(axis, "ylabel", "row", beside)
        drawn.append(Panel(title, x, y, *_values(axis)))
    return drawn


def as_csv(all_panels: Iterable[Panel]) -> str:
    """A line for each value; empty where there are none."""
    lines = [
        [panel.title, panel.x, panel.y, *("" if cell is None else _rounded(cell) for cell in value)]
        for panel in all_panels
        for value in panel.values
    ]
    return csv_text([_COLUMNS, *lines]) if lines else ""


def in_words(all_panels: list[Panel]) -> str:
    """What is drawn, an alternative text: "Lines in 2 panels (cls; patches): R² against layer. Of k2; k3. From 0.1 to 0.9."."""
    kind = next((panel.kind for panel in all_panels if panel.kind), "Pictures")
    titles = dict.fromkeys(panel.title for panel in all_panels if panel.title)
    text = kind + (f" in {len(all_panels)} panels" if len(all_panels) > 1 else "") + (f" ({_listed(titles)})" if titles else "")
    said = dict.fromkeys(f"{p.y} against {p.x}" if p.y and p.x else p.y or p.x for p in all_panels if p.y or p.x)
    text += f": {_listed(said)}." if said else "."
    series = dict.fromkeys(value.series for panel in all_panels for value in panel.values)
    if named := [name for name in series if name and not name.startswith(_UNNAMED)]:
        text += f" Of {_listed(named)}."
    drawn = [v.value if p.kind == "Heat map" else v.y for p in all_panels for v in p.values]
    heights = [height for height in drawn if height is not None and np.isfinite(height)]
    return text + (f" From {min(heights):.3g} to {max(heights):.3g}." if heights else "")


def csv_text(lines: Iterable[Iterable[str | float]]) -> str:
    """Lines of cells, header included, as CSV that a spreadsheet takes for data."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(map(_csv_cell, line) for line in lines)
    return out.getvalue()


def _csv_cell(cell: str | float) -> str | float:
    """A text that a spreadsheet would take for a formula behind an apostrophe; numbers, negative ones too, as they are."""
    if not isinstance(cell, str) or not cell.startswith(_FORMULAS):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def _rounded(cell: float | str) -> str:
    return cell if isinstance(cell, str) else f"{cell:.6g}"


def _place(axis: Axes, which: str) -> int | None:
    spec = axis.get_subplotspec()
    return None if spec is None else getattr(spec, f"{which}span").start


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return "; ".join(listed[:_NAMED]) + (f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else "")


def _values(axis: Axes) -> tuple[str, list[Value]]:
    """The kind of a panel and its values."""
    for image in axis.images:
        matrix = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
        if matrix.ndim == 2:
            return "Heat map", list(_cells(matrix, image.get_extent()))
    if axis.images:
        return "", []
    bars, points = list(_bars(axis)), list(_points(axis))
    lines = list(_lines(axis))
    kind = "Bars" if bars else "Points" if points or (lines and not any(map(_joined, axis.lines))) else "Lines" if lines else ""
    names = _names(axis)
    return kind, [one._replace(x=names.get(round(float(one.x)), one.x)) for one in (*bars, *points, *lines)]


def _joined(line) -> bool:
    return line.get_linestyle() not in ("None", "none", "", " ") and line.get_gid() != GUIDE


def _cells(matrix: np.ndarray, extent) -> Iterator[Value]:
    first = (min(extent[2:]) + 0.5, min(extent[:2]) + 0.5)
    for (row, column), value in np.ndenumerate(matrix):
        yield Value("", float(column + first[1]), float(row + first[0]), value=None if np.isnan(value) else float(value))


def _lines(axis: Axes) -> Iterator[Value]:
    within = {id(part) for one in axis.containers for child in one if child is not None for part in np.atleast_1d(child).ravel()}
    bands, number = _bands(axis), 0
    for line in axis.lines:
        if id(line) in within or line.get_gid() == GUIDE or line.get_transform() != axis.transData:
            continue
        number += 1
        series = _label(line, f"{_UNNAMED}{number}")
        yield from _along(series, *line.get_data(), bands.get(series, {}))
    for one in axis.containers:
        if isinstance(one, ErrorbarContainer) and one.lines[0] is not None:
            series, (xs, ys) = _label(one, ""), one.lines[0].get_data()
            apart = _apart(xs)
            yield from (point._replace(x=round(float(point.x) - apart, 9)) for point in _along(series, xs, ys, _ends(one)))


def _along(series: str, xs, ys, intervals: dict[float, tuple[float, float]]) -> Iterator[Value]:
    for x, y in zip(np.asarray(xs, float), np.asarray(ys, float), strict=True):
        if not np.isnan(y):
            yield Value(series, float(x), float(y), *intervals.get(round(float(x), 9), ()))


def _bars(axis: Axes) -> Iterator[Value]:
    others = [one for one in axis.containers if isinstance(one, ErrorbarContainer) and one.lines[0] is None]
    for one in axis.containers:
        if isinstance(one, BarContainer):
            ends = [_ends(errors) for errors in (one.errorbar, *others) if isinstance(errors, ErrorbarContainer)]
            xs = [round(float(bar.get_x() + bar.get_width() / 2), 9) for bar in one.patches]
            for x, bar in zip(xs, one.patches, strict=True):
                interval = next((each[x] for each in ends if x in each), ())
                yield Value(_label(one, ""), round(x - _apart(xs), 9), float(bar.get_height()), *interval)


def _apart(xs) -> float:
    """How far bars or points were set beside whole numbers, so that they do not hide each other; 0 where they were not."""
    beside = np.asarray(xs, float) - np.round(np.asarray(xs, float))
    return float(beside[0]) if len(beside) and np.ptp(beside) < 1e-6 else 0.0


def _points(axis: Axes) -> Iterator[Value]:
    for drawn in axis.collections:
        if isinstance(drawn, PathCollection):
            places = np.ma.filled(np.ma.asarray(drawn.get_offsets(), float), np.nan)
            tints = drawn.get_array()
            for place, tint in zip(places, [None] * len(places) if tints is None else tints, strict=True):
                yield Value(_label(drawn, ""), float(place[0]), float(place[1]), value=None if tint is None else float(tint))


def _bands(axis: Axes) -> dict[str, dict[float, tuple[float, float]]]:
    """Reads `fill_between(..., gid=LABEL)`: label of the line -> x -> low and high edge."""
    bands: dict[str, dict[float, tuple[float, float]]] = {}
    for drawn in axis.collections:
        if isinstance(drawn, PolyCollection) and (series := drawn.get_gid()) is not None:
            heights: dict[float, list[float]] = {}
            for path in drawn.get_paths():
                for x, y in np.asarray(path.vertices, float):
                    heights.setdefault(round(float(x), 9), []).append(float(y))
            bands.setdefault(series, {}).update({x: (min(ys), max(ys)) for x, ys in heights.items()})
    return bands


def _ends(errors: ErrorbarContainer) -> dict[float, tuple[float, float]]:
    bars = [part for part in errors.lines[2] if isinstance(part, LineCollection)]
    return {
        round(float(end[0, 0]), 9): (float(end[:, 1].min()), float(end[:, 1].max()))
        for part in bars
        for end in part.get_segments()
    }


def _names(axis: Axes) -> dict[int, str]:
    """Place -> name, of an axis whose ticks are called by names."""
    if not isinstance(axis.xaxis.get_major_locator(), FixedLocator) and not axis.xaxis.have_units():
        return {}
    ticks = [float(tick) for tick in axis.get_xticks()]
    texts = [" ".join(text.split()) for text in axis.xaxis.get_major_formatter().format_ticks(ticks)]
    return {} if all(map(_is_number, texts)) else {round(tick): text for tick, text in zip(ticks, texts, strict=True)}


def _is_number(text: str) -> bool:
    try:
        return bool(float(text.replace("\N{MINUS SIGN}", "-") or 0)) or True
    except ValueError:
        return False


def _label(drawn, otherwise: str) -> str:
    """What a legend calls it; else its gid."""
    label = str(drawn.get_label() or "_")
    label = str(getattr(drawn, "get_gid", str)() or otherwise) if label.startswith("_") else label
    return " ".join(label.split())
