"""A portrait as curves along depth, and a surrogate beside the system that it stands for (paper, section 8)."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from brh_jax.dynamics.lyapunov import exponents_by_phase
from brh_jax.dynamics.portrait import Portrait, portraits
from brh_jax.dynamics.tangent import Tangent
from brh_jax.statistics import summarize
from brh_jax.system import DepthSystem
from brh_jax.tokens import ByToken, TokenLayout


class Distance(NamedTuple):
    """How far two curves are apart, means over images compared.

    Attributes:
        absolute: root mean square difference along the curve, in the curve's unit.
        relative: |difference| / |first curve|, Euclidean norms along the curve.
    """

    absolute: float
    relative: float


class Comparison(NamedTuple):
    """A system, its surrogate, and how far apart they are by each curve of `curves`."""

    first: Portrait
    second: Portrait
    distance: dict[str, Distance]


def compare(first: DepthSystem, second: DepthSystem, first_states: Iterable, *, key, **options) -> Comparison:
    """The portraits of two systems from the same first states, and their distance: a surrogate is as good as its dynamics.

    Args:
        first, second: a teacher and its Raptor, say.
        first_states, key, options: as for `portraits`.
    """
    both = portraits({"first": first, "second": second}, first_states, key=key, **options)
    return Comparison(both["first"], both["second"], distance(both["first"], both["second"]))


def distance(first: Portrait, second: Portrait) -> dict[str, Distance]:
    """How far two portraits are apart, by each of their `curves` that have as many points."""
    ours, theirs = curves(first), curves(second)
    return {n: _distance(_mean(ours[n]), _mean(theirs[n])) for n in ours if n in theirs and len(ours[n]) == len(theirs[n])}


def curves(portrait: Portrait) -> dict[str, np.ndarray]:
    """A portrait as curves along depth: name -> `[points, images]`, or `[points]` for what is measured of all images together.

    Names are those of the measures, with the token type behind where there is one: `speed_cls`, `stable_rank_patches`,
    `raw_stable_rank_patches` (of raw updates), `token_stable_rank_patches` (over the tokens of each image).
    Of the tangent images:

    - `growth_cls`: angle to the clean trajectory over the injected one, every token perturbed by a random vector; `recovery`: its
      last value over all tokens, one point for each size; `along`, `towards`, `from_cls`, `from_registers`, `from_patch`: the
      same angle over all tokens where that is what was perturbed;
    - `exponents`, `direction_exponents`: one point for each exponent; `phase_exponents`: the largest of directions, one
      point for each phase;
    - of each layer's map of directions `gain` (largest singular value), `spectral_radius` (largest modulus of an eigenvalue),
      `antisymmetric` (share of its squared norm), `from_identity` (|J - I| / |J|); of its raw map `raw_gain`.

    `horizon_cls` is the cosine of linear predictions on images that were not fitted to, for each phase and number of steps;
    `modulus_cls` the moduli of the eigenvalues of each phase's linear model, largest first.
    """
    found = {}

    def add(name, values: ByToken):
        found.update({f"{name}_{token}": np.asarray(v) for token, v in values._asdict().items() if v.size})

    for name in ("convergence", "speed", "acceleration", "norm"):
        add(name, getattr(portrait.directions, name))
    if portrait.directions.coherence.size:
        found["coherence_patches"] = portrait.directions.coherence
    for prefix, rank in (("", portrait.rank), ("raw_", portrait.raw_rank), ("token_", portrait.token_rank)):
        if rank is not None:
            add(f"{prefix}stable_rank", rank.stable)
            add(f"{prefix}effective_rank", rank.effective)
            add(f"{prefix}participation", rank.participation)
    add("turn", portrait.turn)
    if portrait.basins:
        for name in ("within", "between", "separation", "silhouette", "accuracy"):
            add(name, getattr(portrait.basins, name))
    for token in ByToken._fields:
        horizons = [getattr(horizon, token) for horizon in portrait.horizons]
        if any(h is not None for h in horizons):
            found[f"horizon_{token}"] = np.concatenate([h.dmd.cosine for h in horizons if h is not None])
        modes = [getattr(by_token, token) for by_token in portrait.modes]
        if any(m is not None for m in modes):
            found[f"modulus_{token}"] = np.concatenate([np.abs(m.eigenvalues) for m in modes if m is not None])
    if portrait.tangent is not None:
        found |= _tangent_curves(portrait.tangent, portrait.layout, portrait.partition)
    return found


def bands(curves: Mapping[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Curves as JSON can hold them and the figures of brh_jax.report take them.

    Args:
        curves: name -> `[points, images]` or `[points]`, see `curves`.

    Returns:
        name -> {"mean": `[points]`, None where it is not finite} and, of two images or more, the 10 and 90 %
        quantiles of images as "low" and "high" and the bootstrap band of the mean as "mean_low" and "mean_high".
    """
    found = {}
    for name, values in curves.items():
        found[name] = {"mean": [value if np.isfinite(value) else None for value in np.atleast_1d(_mean(values)).tolist()]}
        if values.ndim > 1 and values.shape[1] > 1 and np.isfinite(values).all():
            summary = summarize(values, quantiles=(0.1, 0.9))
            low, high = summary.quantiles
            band = {"low": low, "high": high, "mean_low": summary.low, "mean_high": summary.high}
            found[name] |= {side: edge.tolist() for side, edge in band.items()}
    return found


def _tangent_curves(tangent: Tangent, layout: TokenLayout, partition) -> dict[str, np.ndarray]:
    found = {}
    for kind, growth in tangent.growth.items():
        if kind == "isotropic":
            relative = jax.tree.map(_relative_growth, growth.angle)
            found |= {f"growth_{token}": v for token, v in relative._asdict().items() if v.size}
            found["recovery"] = growth.recovery
        else:
            total = sum(count * angle for count, angle in zip(layout.counts, growth.angle, strict=True) if count)
            found[kind if kind in ("along", "towards") else f"from_{kind}"] = _relative_growth(total)
    found["exponents"] = tangent.exponents.exponents.T
    found["direction_exponents"] = tangent.direction_exponents.exponents.T
    found["phase_exponents"] = np.asarray(exponents_by_phase(tangent.direction_exponents, partition))[..., 0]
    found["gain"] = tangent.singular_values[..., 0]
    found["raw_gain"] = tangent.raw_singular_values[..., 0]
    found["spectral_radius"] = np.abs(tangent.eigenvalues.values[..., 0])
    found["from_identity"] = tangent.structure.from_identity / tangent.structure.norm
    found["antisymmetric"] = (tangent.structure.antisymmetric / tangent.structure.norm) ** 2
    return found


def _relative_growth(angles):
    """Of the middle one of the sizes, `[sizes, states, images]` to `[states, images]`."""
    if not angles.size:
        return angles
    middle = angles[len(angles) // 2]
    return middle / middle[0]


def _mean(values):
    return values.mean(-1) if values.ndim > 1 else values


def _distance(first, second) -> Distance:
    finite = np.isfinite(first) & np.isfinite(second)
    first, second = first[finite], second[finite]
    size = np.linalg.norm(first)
    difference = np.linalg.norm(second - first)
    relative = float(difference / size) if size else float(difference > 0)
    return Distance(float(difference / np.sqrt(max(first.size, 1))), relative)
