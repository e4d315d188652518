"""Dynamics on the page."""

import numpy as np
from experiments.context import Context

from brh_jax.report import portrait
from brh_jax.report.html import FigureEntry, Table, save_figure
from brh_jax.report.style import TOKEN_NAMES
from brh_jax.tokens import TokenLayout
from experiments.sections import partitions_in

_STATISTICS = {
    "speed": "angular speed",
    "convergence": "cosine with the end",
    "coherence": "patch coherence",
    "stable_rank": "stable rank",
    "effective_rank": "effective rank",
}


def sections(context: Context, results, folder):
    """Depth as a dynamical system, teacher and Raptors side by side."""
    found, partitions = results["dynamics"], partitions_in(results)
    measures, tangent = found["measures"], found["tangent_images"]
    bands = f"Mean over {found['num_images']} images, bands from the 10 to the 90 % quantile over images"

    def entry(figure, name, title, caption):
        return FigureEntry(save_figure(figure, folder, name), title, caption)

    yield entry(
        portrait.dynamics_summary(measures, partitions, "Dynamics of teacher and Raptors"),
        "summary",
        "Dynamics in one figure",
        f"{bands}; perturbations and exponents are of {tangent} images. Dotted lines are phase boundaries. A good surrogate does "
        "what the teacher does in every panel.",
    )
    yield from _findings_tables(found)
    yield entry(
        portrait.along_depth(measures, partitions, portrait.DIRECTIONS),
        "dynamics",
        "Directions along depth",
        f"{bands}. Everything is measured on the unit sphere but the norm, which grows along depth.",
    )
    if "coherence_patches" in measures["teacher"]:
        yield entry(
            portrait.patch_coherence(measures, partitions),
            "coherence",
            "Patch coherence",
            "Mean cosine of the patch tokens with their mean direction: one when all patches point the same way.",
        )
    yield entry(
        portrait.along_depth(measures, partitions, portrait.RANKS),
        "ranks",
        "Ranks of updates",
        "Of the angular updates of all tokens of all images together, of the raw ones, lengths and all, and of the angular ones "
        "over the tokens of one image, mean over images. Last the largest angle between the leading update directions of "
        "neighbouring layers: zero where they move tokens in the same directions, π/2 where each has its own.",
    )
    arrays = context.workdir / "dynamics" / "arrays.npz"
    arrays = dict(np.load(arrays)) if arrays.exists() else {}
    if "labels" in arrays:
        yield entry(
            portrait.along_depth(measures, partitions, portrait.BASINS),
            "basins",
            "Angular basins",
            "Images of one class draw together and apart from others. The nearest class mean is taken without the image itself. "
            "Where the data have no classes these are clusters of the last directions, apart there by construction.",
        )
        paths = {name: arrays[f"{name}/projection"] for name in measures if f"{name}/projection" in arrays}
        yield entry(
            portrait.projections(paths, arrays["labels"]),
            "projections",
            "Trajectories",
            "Directions of images from the first state (crosses) to the last (dots), on the two leading components of each "
            "model's last directions, coloured by class.",
        )
    if tangent:
        eigenvalues = {name: arrays[f"{name}/eigenvalues"] for name in measures if f"{name}/eigenvalues" in arrays}
        yield from _tangent_entries(measures, partitions, tangent, eigenvalues, entry)
    modes = {
        name: [{k: v if k == "phase" else [complex(*z) for z in v] for k, v in phase.items()} for phase in phases]
        for name, phases in found["modes"].items()
    }
    yield entry(
        portrait.modes(modes),
        "modes",
        "Linear models of the phases",
        "Eigenvalues of one linear map for all layers of a phase (dynamic mode decomposition). Inside the circle modes contract; "
        "their angle is how far they turn per layer. Triangles lie further out.",
    )
    if any(len(phase) > 1 for phases in found["horizons"].values() for phase in phases):
        yield entry(
            portrait.horizons(found["horizons"]),
            "horizons",
            "How far ahead a phase is linear",
            "Cosine of predictions for images that were not fitted to: of powers of the one linear map of the phase, of a free "
            "linear map for each pair of layers (the best that a linear map can do), and of leaving the state as it is.",
        )
    matrices = {f"layer {k.removeprefix('influence/')}": v for k, v in arrays.items() if k.startswith("influence/")}
    if matrices:
        yield entry(
            portrait.influence(matrices, TokenLayout(**results["teacher"]["layout"])),
            "influence",
            "Which token moves which",
            "Of the teacher's layers, one image: Frobenius norm of the derivative of each token's direction by each token's.",
        )
    if found["extrapolation"]:
        yield entry(
            portrait.extrapolation(found["extrapolation"]),
            "extrapolation",
            "Blocks iterated beyond their place",
            "The last layer of each phase applied on, to the state that it left, its depth held; mean over all tokens and the "
            "images that stay finite. A falling angle is a direction that comes to rest, whatever the norm does.",
        )
        yield _extrapolation_table(found["extrapolation"], tangent)


def _tangent_entries(measures, partitions, tangent: int, eigenvalues, entry):
    yield entry(
        portrait.along_depth(measures, partitions, portrait.GROWTH),
        "growth",
        "What becomes of a perturbation",
        f"Every token of the first state is moved by a random vector, of the middle of the sizes that config.dynamics names: the "
        f"angle to the clean trajectory later, over the injected one; {tangent} images. Below one directions recover.",
    )
    yield entry(
        portrait.perturbations(measures, partitions),
        "perturbations",
        "Perturbations of other kinds",
        "The same angle, mean over all tokens, where tokens are moved along their own update, towards another image's tokens, or "
        "where one type of token alone is moved at random: above one it has spread to the others, or grown.",
    )
    yield entry(
        portrait.exponents(measures),
        "exponents",
        "Finite-time Lyapunov exponents",
        f"Mean growth of tangent vectors per layer over all of depth, {tangent} images. The directions' leave out the growth of "
        "norms, which is most of the states'.",
    )
    yield entry(
        portrait.jacobians(measures, partitions),
        "jacobians",
        "Jacobians of the layers",
        f"Of each layer's map of directions, all tokens together, {tangent} images: the factor by which the most sensitive "
        "direction grows, how far the map is from leaving all directions as they are, and how far from a symmetric one.",
    )
    if eigenvalues:
        yield entry(
            portrait.eigenvalues(eigenvalues),
            "eigenvalues",
            "Eigenvalues of the layers",
            f"The largest by modulus of each layer's map of directions, all tokens together, {tangent} images: inside the circle "
            "a direction contracts, on the real axis it does not turn.",
        )
    yield entry(
        portrait.sublayers(measures, partitions),
        "sublayers",
        "Attention and feed-forward apart",
        "The angle that each half of a layer turns a token by.",
    )


def _findings_tables(found):
    columns = ["model", "token", "cosine with the end: 0.5 at", "0.9 at", "angular speed: first, middle, last layer"]
    columns += ["stable rank by thirds"]
    rows = []
    for name, finding in found["findings"].items():
        for token in (t for t in TOKEN_NAMES if t in finding):
            one = finding[token]
            row = [name, token, *("never" if one[k] is None else f"state {one[k]:.1f}" for k in ("half", "nine_tenths"))]
            row += [" / ".join(f"{v:.3f}" for v in one["speed"]), " / ".join(f"{v:.1f}" for v in one["stable_rank"])]
            rows.append(row)
    yield Table("Directions in figures", columns, rows)
    yield from _jumps_table(found)
    if found["tangent_images"]:
        kinds = [key for key in found["findings"]["teacher"] if key.startswith("recovery_")]
        columns = ["model", "largest exponent", "of directions", "by phase"]
        columns += [f"recovery, {kind.removeprefix('recovery_')}" for kind in kinds]
        rows = []
        for name, one in found["findings"].items():
            exponents = (_number(one[key]) for key in ("largest_exponent", "largest_direction_exponent"))
            by_phase = " / ".join(_number(v) for v in one["exponent_by_phase"])
            rows.append([name, *exponents, by_phase, *(" / ".join(_number(r, 2) for r in one[kind]) for kind in kinds)])
        remark = (
            "Exponents are per layer, natural logarithms: above zero small differences grow. Recovery: angle of all tokens at "
            "the end over the injected one, for each size of perturbation (config.dynamics.relative_sizes); below one directions "
            "recover. Where one token is moved, above one says that the others follow."
        )
        yield Table("Stability in figures", columns, rows, remark)
    curves = [c for c in next(iter(found["distance"].values()), {}) if not c.startswith(("acceleration", "within", "between"))]
    columns = ["curve", *found["distance"]]
    rows = [[c.replace("_", " "), *(_share(d.get(c)) for d in found["distance"].values())] for c in curves]
    if rows:
        remark = "Of each curve, mean over images: Euclidean norm of the difference along depth over that of the teacher's curve."
        yield Table("Distance of the dynamics from the teacher's", columns, rows, remark)


def _jumps_table(found):
    """p-values of jumps at phase boundaries, statistic by statistic."""
    rows, placements = [], set()
    for name, finding in found["findings"].items():
        for token in (t for t in TOKEN_NAMES if finding.get(t, {}).get("jumps")):
            jumps = finding[token]["jumps"]
            placements |= {str(jump["placements"]) for jump in jumps.values()}
            rows.append([name, token, *(f"{jumps[s]['p']:.3f}" if s in jumps else "" for s in _STATISTICS)])
    if rows:
        remark = (
            "p of the test whether a curve changes more across the phase boundaries than between other layers, against all other "
            f"places for as many boundaries ({' or '.join(sorted(placements))} of them: p cannot fall below one over their "
            "number). One in twenty lies below 0.05 by chance. The boundaries were cut where layers differ most, so a small "
            "value is not independent evidence."
        )
        yield Table("Jumps at phase boundaries", ["model", "token", *_STATISTICS.values()], rows, remark)


def _number(value, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(distance) -> str:
    return "" if not distance or distance["relative"] is None else f"{100 * distance['relative']:.0f} %"


def _extrapolation_table(runs, num_images) -> Table:
    rows = []
    for name, blocks in runs.items():
        for phase, run in blocks.items():
            fates = (", ".join(f"{fate} {count}" for fate, count in run[kind].items()) for kind in ("fate", "direction_fate"))
            growth = run["norm_growth"]
            rows.append([name, phase, *fates, "" if growth is None else f"{growth:.4f}"])
    columns = ["model", "layers", "states", "directions", "norm, factor per step at the end"]
    remark = f"Fates of {num_images} images after {len(next(iter(next(iter(runs.values())).values()))['speed'])} applications."
    return Table("Where iterated blocks end", columns, rows, remark)
