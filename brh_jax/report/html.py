"""One self-contained HTML page: figures are embedded, nothing is fetched."""

import base64
import pathlib
from typing import Any, NamedTuple

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from brh_jax.types import PathLike

DPI = 160  # of figures as files; on the page they have the size that they were drawn for


class FigureEntry(NamedTuple):
    """A figure on the page: the PNG file, a title, and what to see in it."""

    png: pathlib.Path
    title: str
    caption: str


class Table(NamedTuple):
    """A table on the page: title, column names, rows of texts, and a remark."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    remark: str = ""


def save_figure(figure: Figure, folder: PathLike, name: str) -> pathlib.Path:
    """Writes NAME.png and NAME.svg and returns the PNG's path."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight")
    figure.savefig(folder / f"{name}.png", dpi=DPI, bbox_inches="tight")
    return folder / f"{name}.png"


def render(
    path: PathLike, *, title: str, lead: list[str], sections: list[Any], configuration: str, environment: dict[str, str]
) -> None:
    """Writes the page.

    Args:
        lead: what was found, a sentence or two each.
        sections: FigureEntry and Table, in order.
        configuration: the run's, as text.
    """
    loader = jinja2.PackageLoader("brh_jax.report", ".")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("page.html.j2")
    items = []
    for section in sections:
        item = {"kind": "figure" if isinstance(section, FigureEntry) else "table", **section._asdict()}
        if item["kind"] == "figure":
            item["data"] = base64.b64encode(section.png.read_bytes()).decode()
            with Image.open(section.png) as image:
                item["width"] = round(image.width * 96 / DPI)
        items.append(item)
    text = template.render(title=title, lead=lead, items=items, configuration=configuration, environment=environment)
    pathlib.Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")  # paths need not be UTF-8
