"""What all figures share: colours, fonts, legends, scales."""

import io
import textwrap
from collections.abc import Callable, Iterable

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

TEACHER = "#222222"
BASELINE = "#999999"
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # Okabe-Ito: told apart without red and green
TOKEN_NAMES = {"cls": "cls", "registers": "registers", "patches": "patches"}
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def colour(index: int) -> str:
    """The colour of the index-th Raptor, the same in every figure."""
    return COLOURS[index % len(COLOURS)]


def styled(function: Callable) -> Callable:
    """Draws in the style of this package without touching the user's, and so that any notebook shows the figure."""

    def draw(*args, **kwargs):
        with rc_context(_STYLE):
            figure = function(*args, **kwargs)
        if isinstance(figure, Figure):
            # What IPython asks for: without it only notebooks that said `%matplotlib inline` show a Figure.
            vars(figure)["_repr_png_"] = lambda: png(figure)
        return figure

    draw.__name__, draw.__doc__ = function.__name__, function.__doc__
    return draw


def png(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def log_scale(axis: Axes) -> None:
    """A logarithmic scale with plain numbers, of which there are always some."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    # Within less than a factor of four powers of ten may all be outside: round numbers then.
    axis.yaxis.set_major_locator(LogLocator(numticks=6) if high / low > 4 else MaxNLocator(5))
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)) if 4 < high / low <= 1e3 else NullLocator())
    for formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        formatter("{x:g}")


def legend(figure: Figure, axis: Axes) -> None:
    """The lines of one axis, explained to the right of all; long names are broken, so that there is room for the axes."""
    explained = figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    for text in explained.get_texts():
        text.set_text("\n".join(textwrap.fill(line, 28) for line in text.get_text().split("\n")))


def order_of(names: Iterable[str]) -> dict[str, int]:
    """Number of each Raptor among the models, in alphabetical order, so that it keeps its colour."""
    return {name: i for i, name in enumerate(sorted(set(names) - {"teacher"}))}


def line_styles(names: Iterable[str]) -> dict[str, dict]:
    """Line of each model, the teacher's in black."""
    order = order_of(names)
    return {n: {"color": TEACHER, "lw": 1.8} if n == "teacher" else {"color": colour(order[n]), "lw": 1.4} for n in names}


def ticks(first: int, last: int) -> list[int]:
    """About seven whole numbers from `first` to `last`."""
    step = max(1, round((last - first) / 6))
    return list(range(first, last + 1, step))
