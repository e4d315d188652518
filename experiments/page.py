"""Page: what a stage's section of the page of results is made from."""

import dataclasses
import json
import pathlib
from typing import TypeVar

from matplotlib.figure import Figure

from brh_jax.report.html import FigureEntry, Listing, figure_entry
from experiments.results import Results

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Page:
    """The page of a run.

    Attributes:
        results: of all stages that are done.
        workdir: the run, whose stages left arrays and metrics.
        folder: where figures go as files.
    """

    results: Results
    workdir: pathlib.Path
    folder: pathlib.Path

    def result(self, kind: type[R]) -> R:
        """The result of that type, of a stage that is known to be done."""
        result = self.results.get(kind)
        assert result is not None, kind
        return result

    def figure(self, figure: Figure, name: str, title: str, caption: str) -> FigureEntry:
        """Saves a figure as NAME.png and NAME.svg and its values as NAME.csv; it is shown with its title and caption."""
        return figure_entry(figure, self.folder, name, title, caption)


def settings_of(results: Results, title: str = "Settings") -> Listing:
    """The configuration of a run."""
    return Listing(title, json.dumps(results.about["config"], indent=1, ensure_ascii=False))


def of_photographs(images: int, photographs: int) -> str:
    """How many images were measured, and of how many photographs they are views where these are fewer: "128 images (views of 34
    photographs)"."""
    return f"{images} images" if images == photographs else f"{images} images (views of {photographs} photographs)"
