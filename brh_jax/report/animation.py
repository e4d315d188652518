"""Token paths as an animation: one page of HTML that nothing is fetched for."""

import html
import pathlib
from collections.abc import Mapping, Sequence

import jinja2
import numpy as np
from matplotlib.colors import to_hex

from brh_jax.report.paths import image_colours, patch_colours
from brh_jax.tokens import ByToken, TokenLayout
from brh_jax.types import PathLike

_STEPS = 999  # of a coordinate


class Animation:
    """A page that moves. Notebooks show it; `save` writes it for a browser.

    Attributes:
        page: the HTML.
        height: in pixels, in a notebook.
    """

    def __init__(self, page: str, height: int):
        self.page, self.height = page, height

    def save(self, path: PathLike) -> pathlib.Path:
        """Writes the page and gives its path."""
        path = pathlib.Path(path).expanduser()
        path.write_text(self.page, encoding="utf-8")
        return path

    def __repr__(self) -> str:
        return f"Animation of {len(self.page) / 1e3:.0f} kB: save(path) writes it, a notebook shows it"

    def _repr_html_(self) -> str:
        frame = html.escape(self.page, quote=True)
        return f'<iframe srcdoc="{frame}" style="width:100%;height:{self.height}px;border:0" title="animation"></iframe>'


def animation(
    paths: Mapping[str, ByToken],
    layout: TokenLayout,
    image: int,
    labels: Sequence[int] | np.ndarray | None,
    states: Sequence[str],
) -> Animation:
    """Class tokens of all images and patches of one, moving through depth; systems side by side on the same axes.

    Args:
        paths: system -> per token type `[depth + 1, images, tokens, 2]`.
        image: whose patches are shown.
        labels: `[images]`, of the class tokens' colours.
        states: what each state is called.
    """
    moving = {
        name: {"cls": one.cls[:, :, 0] if layout.num_cls else one.cls.reshape(len(states), 0, 2)} for name, one in paths.items()
    }
    for name, one in paths.items():
        moving[name]["patches"] = one.patches[:, image]
    every = np.concatenate([part.reshape(-1, 2) for of_system in moving.values() for part in of_system.values()])
    low, side = every.min(0), max(np.ptp(every, axis=0).max(), 1e-12)
    low = low - (side - np.ptp(every, axis=0)) / 2  # in the middle of a square
    panels = [
        {"name": name} | {kind: np.round((part - low) / side * _STEPS).astype(int).tolist() for kind, part in of_system.items()}
        for name, of_system in moving.items()
    ]
    data = {
        "panels": panels,
        "states": list(states),
        "steps": _STEPS,
        "image": image,
        "clsColours": image_colours(len(panels[0]["cls"][0]), labels),
        "patchColours": [to_hex(shade) for shade in patch_colours(layout.grid)],
    }
    template = jinja2.Environment(loader=jinja2.PackageLoader("brh_jax.report", "."), autoescape=True)
    page = template.get_template("animation.html.j2").render(data=data)
    return Animation(page, 470)
