"""One self-contained HTML page: figures and their values are embedded, nothing is fetched."""

import base64
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from PIL import Image

from brh_jax.report import values
from brh_jax.types import PathLike

_NUMBER = re.compile(r"$|[-+]?[\d.,]+(e[-+]?\d+)?(?![-\d.,]| \|)")  # how a cell begins that counts; phases, 1-4 | 5-12, do not
DPI = 160  # of figures as files; on the page they have the size that they were drawn for


class FigureEntry(NamedTuple):
    """A figure on the page.

    Attributes:
        png: its file.
        title: what it is of.
        caption: what to see in it, in the first sentence; then what was measured.
        alt: what is drawn, for who cannot see it.
        csv: file of its values; None of pictures.
    """

    png: pathlib.Path
    title: str
    caption: str
    alt: str = ""
    csv: pathlib.Path | None = None

    @property
    def width(self) -> int:
        """How wide the figure is on the page, in pixels."""
        with Image.open(self.png) as image:
            return round(image.width * 96 / DPI)


class Table(NamedTuple):
    """A table on the page: title, column names, rows of texts, and a remark."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    remark: str = ""

    @property
    def sides(self) -> list[str]:
        """The side that the cells of each column lie at: numbers at the right, texts at the left."""
        return ["right" if all(_NUMBER.match(row[i]) for row in self.rows) else "left" for i in range(len(self.columns))]


class Listing(NamedTuple):
    """A long text on the page, folded until asked for."""

    title: str
    text: str


class Card(NamedTuple):
    """A part of the answer.

    Attributes:
        title: what it is about.
        finding: the answer, a few words or numbers.
        verdict: what to think of it, a sentence.
        poor: whether that is a disappointment.
        facts: what it is made of, name and value.
        table: figures beside each other; its title and remark are not shown.
    """

    title: str
    finding: str
    verdict: str = ""
    poor: bool = False
    facts: Sequence[tuple[str, str]] = ()
    table: Table | None = None


class Answer(NamedTuple):
    """Attributes: name of the run (empty where there is one), what was asked, the cards that answer it, colour of the run."""

    name: str
    asked: Sequence[tuple[str, str]]
    cards: Sequence[Card]
    colour: str = ""


class Chapter(NamedTuple):
    """Attributes: title, the question that it answers, figures and tables in order."""

    title: str
    question: str
    items: Sequence[FigureEntry | Table | Listing]


def save_figure(figure: Figure, folder: PathLike, name: str) -> pathlib.Path:
    """Writes NAME.png and NAME.svg and returns the PNG's path; the figure is not laid out again after that."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Laid out and measured once, at the PNG's resolution: either file would do both again, which takes longer than drawing.
    figure.set_dpi(DPI)
    if engine := figure.get_layout_engine():
        engine.execute(figure)
    with rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    box = figure.get_tightbbox().padded(rcParams["savefig.pad_inches"])
    figure.savefig(folder / f"{name}.svg", bbox_inches=box)
    figure.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches=box)
    return folder / f"{name}.png"


def figure_entry(figure: Figure, folder: PathLike, name: str, title: str, caption: str) -> FigureEntry:
    """Saves a figure as NAME.png and NAME.svg and its values as NAME.csv, and says what is drawn."""
    png, panels = save_figure(figure, folder, name), values.panels(figure)
    csv = png.with_suffix(".csv")
    if text := values.as_csv(panels):
        csv.write_text(text, encoding="utf-8", errors="backslashreplace")
    return FigureEntry(png, title, caption, values.in_words(panels), csv if text else None)


def render(
    path: PathLike, *, title: str, chapters: Sequence[Chapter], answers: Sequence[Answer] = (), lead: Sequence[str] = ()
) -> None:
    """Writes the page.

    Args:
        chapters: in order; those without items are left out.
        answers: of each run, side by side.
        lead: sentences above all.
    """
    loader = jinja2.PackageLoader("brh_jax.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"base64": _base64, "anchor": _anchor, "kind": lambda item: type(item).__name__, "whole": _whole}
    text = environment.get_template("page.html.j2").render(
        title=title, lead=lead, answers=answers, chapters=[chapter for chapter in chapters if chapter.items]
    )
    pathlib.Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")  # paths need not be UTF-8


def _base64(path: pathlib.Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _whole(text: str) -> str:
    """A text whose lines do not break before a percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _anchor(*titles: str) -> str:
    """What a link within the page calls a place."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") for title in titles)
