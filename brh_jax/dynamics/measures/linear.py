"""Linear models of the phases, and how far ahead they are right."""

from typing import NamedTuple

import numpy as np

from brh_jax.curves import Curve
from brh_jax.dynamics.dmd import DMD, Horizon, dmd, dmd_horizon
from brh_jax.dynamics.measure import Measure, Picture, Seen, Shown, styled
from brh_jax.readable import readable
from brh_jax.statistics import numbered_groups
from brh_jax.tokens import ByToken

# Layers ahead that linear models of a phase are held to, as far as it has as many, and their ridge: tokens of few images span
# fewer dimensions than they have, and the free linear maps beside them would not be defined.
_HORIZON, _RIDGE = (1, 2, 3, 4), 1e-3
_PREDICTORS = {"dmd": ("-", "one linear map"), "linear": ("--", "free linear maps"), "identity": (":", "no change")}


@readable(tested="numbers of images")
class LinearModels(NamedTuple):
    """A linear model of each phase of the finest partition, so that systems compare.

    Attributes:
        phases: their layers, as a partition prints them.
        modes: per token type the linear model of the phase; None for a type that the model lacks.
        horizons: per token type how far ahead a linear model of one half of the linear images predicts the others, which are of
            other photographs; None for a type that the model lacks, and with fewer than two photographs.
        tested: which of the images they are predicted on.
    """

    phases: tuple[str, ...]
    modes: tuple[ByToken, ...]
    horizons: tuple[ByToken, ...]
    tested: np.ndarray


def _compute(seen: Seen) -> LinearModels:
    runs = seen.finest.runs
    total = sum(t.shape[1] for t in seen.trajectories)
    numbers = numbered_groups(seen.photographs[:total], total)
    train = numbers < (numbers.max() + 1) // 2
    modes, horizons = tuple(_modes(seen, run) for run in runs), tuple(_horizons(seen, run, train) for run in runs)
    return LinearModels(tuple(map(str, runs)), modes, horizons, np.flatnonzero(~train))


def _modes(seen: Seen, run) -> ByToken:
    def of_type(token, count) -> DMD | None:
        if not count:
            return None
        options = {"layout": seen.layout, "token": token, "clip_rank": True}
        return dmd(seen.trajectories, (run.start + 1, run.stop), seen.settings.rank, **options)

    return ByToken(*(of_type(token, count) for token, count in seen.layout.counts._asdict().items()))


def _horizons(seen: Seen, run, train: np.ndarray) -> ByToken:
    """Fits linear models to the images in `train` and measures on the others."""
    cuts = np.cumsum([t.shape[1] for t in seen.trajectories])[:-1]
    parts = list(zip(seen.trajectories, np.split(train, cuts), strict=True))
    fitted, tested = ([t[:, rows == half] for t, rows in parts if (rows == half).any()] for half in (True, False))
    steps = tuple(p for p in _HORIZON if p <= run.stop - run.start)

    def of_type(token, count) -> Horizon | None:
        if not (count and train.any()):
            return None
        options = {"steps": steps, "ridge": _RIDGE, "layout": seen.layout, "token": token, "clip_rank": True}
        return dmd_horizon(fitted, tested, (run.start + 1, run.stop), seen.settings.rank, **options)

    return ByToken(*(of_type(token, count) for token, count in seen.layout.counts._asdict().items()))


def _curves(models: LinearModels) -> dict[str, Curve]:
    """`horizon_cls`: cosine of predictions on images not fitted to, phase by phase and step by step; `modulus_cls`: the moduli of
    each phase's eigenvalues, largest first."""
    curves = {}
    for token in ByToken._fields:
        if horizons := _present(models.horizons, token):
            curves[f"horizon_{token}"] = Curve(np.concatenate([h.dmd.cosine for h in horizons]), "horizon", token, models.tested)
        if modes := _present(models.modes, token):
            curves[f"modulus_{token}"] = Curve(np.concatenate([np.abs(m.eigenvalues) for m in modes]), "modes", token)
    return curves


def _arrays(models: LinearModels) -> dict[str, np.ndarray]:
    """`phases`; by token type complex `modes_cls [phases, r]` and `horizon_cls [phases, predictors, steps]`, NaN where there are
    fewer."""
    arrays = {"phases": np.array(models.phases)}
    for token in ByToken._fields:
        if modes := _present(models.modes, token):
            arrays[f"modes_{token}"] = _padded([m.eigenvalues for m in modes])
        if horizons := _present(models.horizons, token):
            cosines = [np.stack([getattr(h, name).cosine for name in _PREDICTORS]) for h in horizons]
            arrays[f"horizon_{token}"] = _padded(cosines)
    return arrays


def _present(by_phase: tuple[ByToken, ...], token: str) -> list:
    return [one for by_type in by_phase if (one := getattr(by_type, token)) is not None]


def _padded(rows) -> np.ndarray:
    """Arrays side by side, with NaN at the ends of those that are shorter."""
    padded = np.full((len(rows), *rows[0].shape[:-1], max(row.shape[-1] for row in rows)), np.nan, rows[0].dtype)
    for place, row in zip(padded, rows, strict=True):
        place[..., : row.shape[-1]] = row
    return padded


@styled
def _draw_modes(shown: Shown, radius: float = 1.8):
    """Eigenvalues in the complex plane with the unit circle; those beyond the radius as triangles at this distance."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    from brh_jax.report.style import TOKEN_NAMES, colour, legend
    from brh_jax.report.values import GUIDE

    types = [t for t in TOKEN_NAMES if shown.each(f"linear/modes_{t}")]
    phases = shown.each("linear/phases")
    if not types:
        return None
    figure = Figure(figsize=(2.8 * len(types) + 1.4, 2.6 * len(phases) + 0.3), layout="constrained")
    axes = figure.subplots(len(phases), len(types), squeeze=False, sharex=True, sharey=True)
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    for line, system in zip(axes, phases, strict=True):
        for axis, token in zip(line, types, strict=True):
            axis.plot(turn.real, turn.imag, color="#bbbbbb", lw=0.8, gid=GUIDE)
            for i, values in enumerate(shown.arrays[system].get(f"linear/modes_{token}", ())):
                values = values[np.isfinite(values)]
                size = np.abs(values)
                (dots,) = axis.plot(values.real, values.imag, ".", ms=4, color=colour(i), label=f"layers {phases[system][i]}")
                dots.set_clip_path(Circle((0, 0), radius, transform=axis.transData))
                outside = (radius * values / np.maximum(size, radius))[size > radius]
                axis.plot(outside.real, outside.imag, "^", ms=4, color=colour(i), gid=GUIDE)
            axis.set_aspect("equal")
            axis.set_xlim(-1.1 * radius, 1.1 * radius)
            axis.set_ylim(-1.1 * radius, 1.1 * radius)
        line[0].set_ylabel(f"{system}\nimaginary part")
    for axis, token in zip(axes[0], types, strict=True):
        axis.set_title(TOKEN_NAMES[token])
    for axis in axes[-1]:
        axis.set_xlabel("real part")
    legend(figure, axes[0][0])
    return figure


@styled
def _draw_horizons(shown: Shown):
    """Cosine of linear predictions by the number of layers ahead, a row for each token type and a column for each phase."""
    from matplotlib.figure import Figure

    from brh_jax.report.style import TOKEN_NAMES, legend, line_styles

    types = [t for t in TOKEN_NAMES if shown.each(f"linear/horizon_{t}")]
    if not types:
        return None
    phases, styles = shown.each("linear/phases")[shown.reference], line_styles(shown.bands)
    figure = Figure(figsize=(2.6 * len(phases) + 1.8, 2.2 * len(types) + 0.3), layout="constrained")
    axes = figure.subplots(len(types), len(phases), squeeze=False, sharey="row")
    for line, token in zip(axes, types, strict=True):
        for column, axis in enumerate(line):
            for system, horizons in shown.each(f"linear/horizon_{token}").items():
                for cosine, (dash, label) in zip(horizons[column], _PREDICTORS.values(), strict=True):
                    cosine = cosine[np.isfinite(cosine)]
                    steps = _HORIZON[: len(cosine)]
                    axis.plot(steps, cosine, dash, marker="o", ms=3, **styles[system], label=f"{system}, {label}")
            axis.set_xticks(_HORIZON)
            axis.set_xlim(0.7, 4.3)
        line[0].set_ylabel(f"{TOKEN_NAMES[token]}: cosine")
    for axis, phase in zip(axes[0], phases, strict=True):
        axis.set_title(f"layers {phase}")
    for axis in axes[-1]:
        axis.set_xlabel("layers ahead")
    legend(figure, axes[0][0])
    return figure


MEASURE = Measure(
    "linear",
    on="trajectories",
    compute=_compute,
    curves=_curves,
    arrays=_arrays,
    figures=(
        Picture(
            "modes",
            "Linear models of the phases",
            "Inside the circle modes contract; their angle is how far they turn per layer. Eigenvalues of one linear map for all "
            "layers of a phase (dynamic mode decomposition); triangles lie further out.",
            _draw_modes,
        ),
        Picture(
            "horizons",
            "How far ahead a phase is linear",
            "The nearer the one map comes to the free ones, the more linear is a phase. Cosine of predictions for images that "
            "were not fitted to: of powers of the one linear map of the phase, of a free linear map for each pair of layers "
            "(the best that a linear map can do), and of leaving the state as it is.",
            _draw_horizons,
        ),
    ),
)
