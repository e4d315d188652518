"""Which token moves which, in the first, middle and last layer of the first system."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from brh_jax.dynamics.influence import token_influence
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, styled
from brh_jax.readable import readable
from brh_jax.tokens import TokenLayout
from brh_jax.train.parallel import to_host
from brh_jax.types import TokenMatrix


@readable(layers="from 1")
class Influence(NamedTuple):
    """Which token moves which, in one image.

    Attributes:
        layers: counted from 1, `[n]`.
        matrices: norms of the blocks of the map of directions, `[n, tokens, tokens]`, see `token_influence`.
    """

    layers: np.ndarray
    matrices: np.ndarray


def _compute(seen: Seen) -> Influence | None:
    if not (seen.reference and seen.settings.influence_probes):
        return None
    layers = sorted({0, seen.system.depth // 2, seen.system.depth - 1})
    options: dict[str, Any] = {"num_probes": seen.settings.influence_probes, "key": seen.key, "sphere": True}
    matrices = [to_host(token_influence(seen.system, seen.states[layer][:1], layer, **options))[0] for layer in layers]
    return Influence(np.array(layers) + 1, np.stack(matrices))


@styled
def influence(matrices: Mapping[str, TokenMatrix], layout: TokenLayout):
    """How much each token moves each, |d y_i / d x_j|, in logarithms; lines part cls, registers and patches.

    Args:
        matrices: title -> `[tokens, tokens]`, row = output, column = input.
        layout: which tokens are which.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(3.3 * len(matrices) + 0.9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(matrices), squeeze=False)[0]
    logs = {title: np.log10(np.maximum(np.asarray(m), 1e-12)) for title, m in matrices.items()}
    low, high = np.quantile(np.concatenate([m.ravel() for m in logs.values()]), (0.01, 1.0))
    for axis, (title, matrix) in zip(axes, logs.items(), strict=True):
        image = axis.imshow(matrix, cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        for place in (layout.num_cls, layout.num_cls + layout.num_registers):
            if 0 < place < layout.num_tokens:
                axis.axhline(place - 0.5, color="white", lw=0.5)
                axis.axvline(place - 0.5, color="white", lw=0.5)
        axis.set_title(title)
        axis.set_xlabel("input token")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_locator(MaxNLocator(6, integer=True))
    axes[0].set_ylabel("output token")
    figure.colorbar(image, ax=axes, label="log10 of the norm", shrink=0.85)
    return figure


def _draw(shown: Shown):
    arrays = shown.arrays[shown.reference]
    if "influence/layers" not in arrays:
        return None
    layers, matrices = arrays["influence/layers"], arrays["influence/matrices"]
    return influence({f"layer {layer}": matrix for layer, matrix in zip(layers, matrices, strict=True)}, shown.layout)


MEASURE = Measure(
    "influence",
    on="tangent",
    compute=_compute,
    arrays=lambda found: {"layers": found.layers, "matrices": found.matrices},
    figures=(
        Picture(
            "influence",
            "Which token moves which",
            "A bright column is a token that moves all others. Of the teacher's layers, one image: Frobenius norm of the "
            "derivative of each token's direction by each token's.",
            _draw,
        ),
    ),
)
