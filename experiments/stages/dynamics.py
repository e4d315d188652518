"""Dynamics of teacher and Raptors on the same images."""

import pathlib

import jax
import numpy as np

from brh_jax import dynamics
from brh_jax.parallel import to_host
from experiments.context import Context


def run(context: Context, folder: pathlib.Path) -> dict:
    """Means and the 10 to 90 % range over images; every image's curves are left in `per_image.npz`."""
    config, teacher, models = context.config, context.teacher(), context.encoders()
    source, layout = context.source(config.data.eval), teacher.layout

    @jax.jit
    def measures(states):
        convergence = dynamics.directional_convergence_per_image(states, layout)
        speed = dynamics.angular_speed_per_image(states, layout)
        return {
            **{f"convergence_{t}": v for t, v in convergence._asdict().items()},
            **{f"speed_{t}": v for t, v in speed._asdict().items()},
            "coherence_patches": dynamics.patch_coherence_per_image(states, layout),
        }

    batches_of = {name: [] for name in models}
    for batch in context.measuring_batches(source, teacher.preprocessing, config.dynamics, "dynamics"):
        start = teacher.embed(teacher.normalize_pixels(batch["image"]))
        for name, encoder in models.items():
            values = to_host(measures(encoder.rollout(start)))
            batches_of[name].append({k: v[:, batch["valid"]] for k, v in values.items() if len(v)})
    per_image = {
        f"{name}/{k}": np.concatenate([b[k] for b in batches], axis=1) for name, batches in batches_of.items() for k in batches[0]
    }
    context.save_arrays(folder / "per_image.npz", **per_image)
    measured = {name: {} for name in models}
    for key, values in per_image.items():
        name, _, measure = key.partition("/")
        low, high = np.quantile(values, (0.1, 0.9), axis=1)
        measured[name][measure] = {"mean": values.mean(1).tolist(), "low": low.tolist(), "high": high.tolist()}
    return {"num_images": values.shape[1], "measures": measured, "skipped": source.skipped}
