"""Dynamics of teacher and Raptors from the same first states."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax import dynamics
from brh_jax.parallel import shard_batch, to_host
from brh_jax.phases import Partition
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
    # Small differences would drown in the rounding of bfloat16: dynamics are measured in the precision of the parameters.
    models = {name: encoder.replace(dtype=None) for name, encoder in models.items()}
    systems = {name: encoder.system() for name, encoder in models.items()}
    measured = dynamics.portraits(systems, first_states(), key=key, partition=finest, settings=settings)
    start = measured["teacher"].start

    curves = {name: dynamics.curves(portrait) for name, portrait in measured.items()}
    for name, encoder in models.items() if start is not None else ():
        curves[name] |= _sublayers(encoder, start)
    arrays = {f"{name}/{curve}": values for name, found in curves.items() for curve, values in found.items()}
    arrays |= {f"{name}/projection": p.basins.projection for name, p in measured.items() if p.basins}
    if measured["teacher"].basins:
        arrays["labels"] = measured["teacher"].basins.labels
    if start is not None and section.influence_probes:
        arrays |= _influence(systems["teacher"], start, section.influence_probes, key)
    context.save_arrays(folder / "arrays.npz", **arrays)

    phases = {"teacher": finest} | {f"k{k}": partition for k, partition in partitions.items()}
    return {
        "num_images": num_images,
        "tangent_images": 0 if start is None else len(start),
        "measures": {name: dynamics.bands(found) for name, found in curves.items()},
        "modes": {name: _eigenvalues(portrait.modes, finest) for name, portrait in measured.items()},
        "findings": {name: _findings(portrait, phases[name]) for name, portrait in measured.items()},
        "distance": {
            name: {curve: d._asdict() for curve, d in dynamics.distance(measured["teacher"], portrait).items()}
            for name, portrait in measured.items()
            if name != "teacher"
        },
        "extrapolation": {
            name: _extrapolation(systems[name], phases[name], start, section.extrapolated_steps)
            for name in models
            if start is not None and section.extrapolated_steps
        },
        "skipped": source.skipped,
    }


_OF_THE_STAGE = ("num_images", "batch_size", "extrapolated_steps", "influence_probes")


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


def _findings(portrait, partition) -> dict:
    """The curves in a few figures: what the paper says of them can be held against these."""
    curves = {name: values.mean(-1) if values.ndim > 1 else values for name, values in dynamics.curves(portrait).items()}
    found = {}
    if portrait.growth is not None:
        found["largest_exponent"] = _number(curves["exponents"][0])
        found["largest_direction_exponent"] = _number(curves["direction_exponents"][0])
        found["recovery"] = [_number(r) for r in np.mean(portrait.growth.recovery, axis=-1)]
    for token in ("cls", "registers", "patches"):
        if f"speed_{token}" not in curves:
            continue
        convergence, speed, rank = (curves[f"{name}_{token}"] for name in ("convergence", "speed", "stable_rank"))
        found[token] = {
            "half": dynamics.crossing(convergence, 0.5),
            "nine_tenths": dynamics.crossing(convergence, 0.9),
            "speed": [float(speed[i]) for i in (0, len(speed) // 2, -1)],
            "stable_rank": [float(part.mean()) for part in np.array_split(rank, 3)],
        }
        if 0 < len(partition.boundaries) < len(speed) - 1:
            test = dynamics.boundary_jump_test(speed, partition.boundaries)
            found[token]["jump"] = {"statistic": test.statistic, "p": test.p_value, "placements": test.num_placements}
    return found


def _extrapolation(system, partition, start, num_steps: int) -> dict:
    """The last layer of each run applied on, to the state that it left; means over tokens and the images that stay finite."""
    states, found = system.rollout(start), {}
    for run in partition.runs:
        layer = run.stop - 1
        result = jax.tree.map(to_host, dynamics.extrapolated_depth(system, states[run.stop], layer, num_steps))
        speed, norm = (_over_tokens(part, system.layout) for part in (result.speed, result.norm))
        counts = {
            kind: {fate: int(np.sum(values == i)) for i, fate in enumerate(dynamics.FATES) if np.any(values == i)}
            for kind, values in (("fate", result.fate), ("direction_fate", result.direction_fate))
        }
        found[str(run)] = {
            "speed": [_number(v) for v in speed],
            "norm": [_number(v) for v in norm],
            "norm_growth": _number(result.norm_growth.mean()),
            **counts,
        }
    return found


def _over_tokens(values, layout):
    """Mean over all tokens and over the images for which it is finite: ByToken `[steps, batch]` to `[steps]`."""
    total = sum(count * v for count, v in zip(layout.counts, values, strict=True) if v.size) / layout.num_tokens
    finite = np.isfinite(total)
    return np.where(finite, total, 0).sum(-1) / np.where(finite.any(-1), finite.sum(-1), np.nan)


def _number(value) -> float | None:
    """JSON has no infinities."""
    return float(value) if np.isfinite(value) else None
