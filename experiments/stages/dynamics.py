"""Dynamics of teacher and Raptors from the same first states."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax import dynamics
from brh_jax.phases import Partition
from brh_jax.train.parallel import shard_batch, to_host
from experiments.context import Context, settings_of


def run(context: Context, folder: pathlib.Path) -> dict:
    """Every measure of brh_jax.dynamics: means and the 10 to 90 % range over images; whole arrays are left in `arrays.npz`."""
    config, teacher, models = context.config, context.teacher(), context.encoders()
    source, partitions = context.source(config.data.eval), context.partitions()
    section = config.dynamics
    settings = settings_of(dynamics.PortraitSettings, {k: v for k, v in section.items() if k not in _OF_THE_STAGE})
    key = jax.random.key(config.seed)
    num_images = 0

    def first_states():
        nonlocal num_images
        for batch in context.measuring_batches(source, teacher.preprocessing, section, "dynamics"):
            state = to_host(teacher.embed(teacher.normalize_pixels(batch["image"])))[batch["valid"]]
            num_images += len(state)
            yield _place(state, context.mesh), batch["label"][batch["valid"]]

    finest = max(partitions.values(), key=lambda partition: partition.k, default=Partition((teacher.depth,)))
    phases = {"teacher": finest} | {f"k{k}": partition for k, partition in partitions.items()}
    # Small differences would drown in the rounding of bfloat16: dynamics are measured in the precision of the parameters.
    models = {name: encoder.replace(dtype=None) for name, encoder in models.items()}
    systems = {name: encoder.system() for name, encoder in models.items()}
    measured = dynamics.portraits(systems, first_states(), key=key, partition=phases, settings=settings)
    tangents = {name: portrait.tangent for name, portrait in measured.items() if portrait.tangent}

    curves = {name: dynamics.curves(portrait) for name, portrait in measured.items()}
    for name, tangent in tangents.items():
        curves[name] |= _sublayers(models[name], tangent.start)
    arrays = {f"{name}/{curve}": values for name, found in curves.items() for curve, values in found.items()}
    arrays |= {f"{name}/projection": p.basins.projection for name, p in measured.items() if p.basins}
    arrays |= {f"{name}/eigenvalues": tangent.eigenvalues.values for name, tangent in tangents.items()}
    if measured["teacher"].basins:
        arrays["labels"] = measured["teacher"].basins.labels
    if tangents and section.influence_probes:
        arrays |= _influence(systems["teacher"], tangents["teacher"].start, section.influence_probes, key)
    context.save_arrays(folder / "arrays.npz", **arrays)

    return {
        "num_images": num_images,
        "tangent_images": len(tangents["teacher"].start) if tangents else 0,
        "measures": {name: dynamics.bands(found) for name, found in curves.items()},
        "modes": {name: _eigenvalues(portrait.modes, finest) for name, portrait in measured.items()},
        "horizons": {name: _horizons(portrait.horizons, finest) for name, portrait in measured.items()},
        "findings": {name: _findings(portrait) for name, portrait in measured.items()},
        "distance": {
            name: {
                curve: {kind: _number(value) for kind, value in d._asdict().items()}
                for curve, d in dynamics.distance(measured["teacher"], portrait).items()
            }
            for name, portrait in measured.items()
            if name != "teacher"
        },
        "extrapolation": {
            name: {
                str(run): _extrapolation(result, teacher.layout)
                for run, result in zip(phases[name].runs, tangent.extrapolation, strict=True)
            }
            for name, tangent in tangents.items()
            if tangent.extrapolation
        },
        "skipped": source.skipped,
    }


_OF_THE_STAGE = ("num_images", "batch_size", "influence_probes")
_TOKENS = ("cls", "registers", "patches")


def _place(state, mesh):
    """Laid over the devices of one process where they divide it; several processes each compute the whole."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    return shard_batch(state, mesh) if jax.process_count() == 1 and len(state) % ways == 0 else jnp.asarray(state)


def _sublayers(encoder, start) -> dict:
    """Curves of attention and feed-forward apart, of the angle that they turn tokens by."""
    halves = encoder.system(sublayers=True)
    speed = dynamics.direction_measures([halves.rollout(start)], encoder.layout).speed
    found = {}
    for token, values in speed._asdict().items():
        if values.size:
            found |= {f"attention_speed_{token}": values[::2], f"mlp_speed_{token}": values[1::2]}
    return found


def _influence(system, start, num_probes: int, key) -> dict:
    """Matrices of the first image at the first, middle and last layer."""
    states, found = system.rollout(start), {}
    for layer in sorted({0, system.depth // 2, system.depth - 1}):
        matrix = dynamics.token_influence(system, states[layer][:1], layer, num_probes=num_probes, key=key, sphere=True)
        found[f"influence/{layer + 1}"] = to_host(matrix)[0]
    return found


def _eigenvalues(modes, partition) -> list[dict]:
    return [
        {"phase": str(run)}
        | {t: [[v.real, v.imag] for v in model.eigenvalues.tolist()] for t, model in by_token._asdict().items() if model}
        for run, by_token in zip(partition.runs, modes, strict=True)
    ]


def _horizons(horizons, partition) -> list[dict]:
    """By phase and token type, the cosine of each linear prediction by the number of layers ahead."""
    return [
        {"phase": str(run)}
        | {
            token: {"steps": h.steps.tolist()}
            | {kind: getattr(h, kind).cosine.tolist() for kind in ("dmd", "identity", "linear")}
            for token, h in by_token._asdict().items()
            if h
        }
        for run, by_token in zip(partition.runs, horizons, strict=True)
    ]


def _findings(portrait) -> dict:
    """The curves in a few figures: what the paper says of them can be held against these."""
    curves = {name: values.mean(-1) if values.ndim > 1 else values for name, values in dynamics.curves(portrait).items()}
    found = {}
    if portrait.tangent is not None:
        found["largest_exponent"] = _number(curves["exponents"][0])
        found["largest_direction_exponent"] = _number(curves["direction_exponents"][0])
        found["exponent_by_phase"] = [_number(v) for v in curves["phase_exponents"]]
        for kind, growth in portrait.tangent.growth.items():
            found[f"recovery_{kind}"] = [_number(r) for r in np.mean(growth.recovery, axis=-1)]
    for token in _TOKENS:
        if f"speed_{token}" not in curves:
            continue
        convergence, speed, rank = (curves[f"{name}_{token}"] for name in ("convergence", "speed", "stable_rank"))
        found[token] = {
            "half": dynamics.crossing(convergence, 0.5),
            "nine_tenths": dynamics.crossing(convergence, 0.9),
            "speed": [float(speed[i]) for i in (0, len(speed) // 2, -1)],
            "stable_rank": [float(part.mean()) for part in np.array_split(rank, 3)],
            "jumps": _jumps(curves, token, portrait.partition),
        }
    return found


def _jumps(curves, token: str, partition) -> dict:
    """For each statistic, whether it changes more across phase boundaries than elsewhere; of states, what a layer changes."""
    if not 0 < len(partition.boundaries) < partition.depth - 1:
        return {}
    of_layers = {name: curves[f"{name}_{token}"] for name in ("speed", "stable_rank", "effective_rank")}
    of_layers |= {
        name: np.diff(curves[f"{name}_{token}"]) for name in ("convergence", "coherence") if f"{name}_{token}" in curves
    }
    found = {}
    for name, values in of_layers.items():
        if np.isfinite(values).all():
            test = dynamics.boundary_jump_test(values, partition.boundaries)
            found[name] = {"statistic": test.statistic, "p": test.p_value, "placements": test.num_placements}
    return found


def _extrapolation(result, layout) -> dict:
    """Means over tokens and the images that stay finite, and how many images end how."""
    speed, norm = (_over_tokens(part, layout) for part in (result.speed, result.norm))
    counts = {
        kind: {fate: int(np.sum(values == i)) for i, fate in enumerate(dynamics.FATES) if np.any(values == i)}
        for kind, values in (("fate", result.fate), ("direction_fate", result.direction_fate))
    }
    return {
        "speed": [_number(v) for v in speed],
        "norm": [_number(v) for v in norm],
        "norm_growth": _finite_mean(result.norm_growth),
        **counts,
    }


def _over_tokens(values, layout):
    """Mean over all tokens and over the images for which it is finite: ByToken `[steps, batch]` to `[steps]`."""
    total = sum(count * v for count, v in zip(layout.counts, values, strict=True) if v.size) / layout.num_tokens
    finite = np.isfinite(total)
    return np.where(finite, total, 0).sum(-1) / np.where(finite.any(-1), finite.sum(-1), np.nan)


def _finite_mean(values) -> float | None:
    finite = np.asarray(values)[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _number(value) -> float | None:
    """JSON has no infinities."""
    return float(value) if np.isfinite(value) else None
