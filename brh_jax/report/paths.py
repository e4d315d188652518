"""Figure of token paths through depth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb, to_hex
from matplotlib.figure import Figure

from brh_jax.report.style import BASELINE, COLOURS, colour, styled
from brh_jax.report.values import GUIDE
from brh_jax.tokens import ByToken, TokenLayout


@styled
def draw(paths: Mapping[str, ByToken], layout: TokenLayout, image: int, labels: Sequence[int] | np.ndarray | None) -> Figure:
    """A row for each system: paths of the class tokens of all images, and of the patches of one.

    Args:
        paths: system -> per token type `[depth + 1, images, tokens, 2]`.
        image: whose patches are drawn.
        labels: `[images]`, of the class tokens' colours; None for a colour each.
    """
    kinds = [kind for kind in ("cls", "patches") if getattr(layout.counts, kind)]
    figure = Figure(figsize=(3.6 * len(kinds) + 0.3, 3.3 * len(paths)), layout="constrained")
    axes = figure.subplots(len(paths), len(kinds), squeeze=False)
    for line, (name, of_system) in zip(axes, paths.items(), strict=True):
        for axis, kind in zip(line, kinds, strict=True):
            tints: Sequence[Any]
            if kind == "cls":
                one, tints = of_system.cls[:, :, 0], image_colours(of_system.cls.shape[1], labels)
            else:
                one, tints = of_system.patches[:, image], patch_colours(layout.grid)
            for path, tint in zip(np.moveaxis(one, 1, 0), tints, strict=True):
                axis.plot(*path.T, color=tint, lw=0.7, alpha=0.6)
                axis.plot(*path[-1], "o", color=tint, ms=3.5, gid=GUIDE)
            axis.plot(*one[0].T, "x", color=BASELINE, ms=4, gid=GUIDE)
            axis.set_aspect("equal", adjustable="datalim")
            axis.set_xlabel("first component")
            what = "class tokens of all images" if kind == "cls" else f"patches of image {image}, coloured by place"
            axis.set_title(f"{name}: {what}" if name else what, fontsize=9)
        line[0].set_ylabel("second component")
    return figure


def image_colours(images: int, labels: Sequence[int] | np.ndarray | None) -> list[str]:
    """A colour for each image: that of its class where there are classes."""
    numbers = np.arange(images) if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    if labels is None or numbers.max() < len(COLOURS):
        return [colour(int(number)) for number in numbers]
    many = colormaps["tab10" if numbers.max() < 10 else "tab20"]  # twenty are as many as can be told apart
    return [to_hex(many(int(number) % many.N)) for number in numbers]


def patch_colours(grid: tuple[int, int]) -> list[tuple[float, float, float]]:
    """A colour for each patch: hue by its direction from the middle of the image, fuller towards the edge."""
    rows, columns = grid
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    hue, far = np.arctan2(y, x) / (2 * np.pi) % 1, np.minimum(np.hypot(x, y), 1)
    shades = hsv_to_rgb(np.stack([hue, 0.25 + 0.7 * far, np.full_like(hue, 0.85)], -1))
    return [tuple(shade) for shade in shades.reshape(-1, 3).tolist()]
