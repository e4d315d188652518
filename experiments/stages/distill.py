"""Distillation: a Raptor for every partition, and its agreement with the teacher."""

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from brh_jax import distill
from brh_jax.distill.states import StatesBatches, open_states
from brh_jax.dynamics import summarize
from brh_jax.models import RaptorConfig
from brh_jax.models.cost import cost, describe, unshared
from brh_jax.train.parallel import to_host
from experiments.context import Context, identity, settings_of


def run(context: Context, folder: pathlib.Path) -> dict:
    """Leaves every Raptor in `kN/raptor/`; agreement is measured on images that were not trained on."""
    config, teacher = context.config, context.teacher()
    source = context.source(config.data.train)
    # Opened before anything is trained, so that a set that is not there is said at once.
    evaluations = {spec: context.source(spec) for spec in (config.data.eval, *config.eval.more)}
    raptors, costs = {}, {}
    for k, partition in context.partitions().items():
        raptor_config = _config_of(config.raptor, teacher, partition)
        blocks = to_host(distill.init_blocks(raptor_config, teacher.layout, jax.random.key(config.seed)))
        last = 2 if config.distill.stage2.steps else 1
        for stage in range(1, last + 1):
            # Of stage 1 too, parameters alone, for whoever wants to look at what stage 2 adds.
            where = folder / f"k{k}" / ("raptor" if stage == last else "stage1/raptor")
            if context.finished:
                raptor = context.encoder(where, "distill")
            else:
                blocks = _train(context, folder / f"k{k}", stage, source, teacher, raptor_config, blocks)
                raptor = distill.raptor_encoder(raptor_config, blocks, teacher, f"Raptor {partition} of {teacher.name}")
                context.save(raptor, where, {"partition": str(partition), "stage": stage})
            raptors[f"k{k}" if stage == last else f"k{k}_stage1"] = raptor.rollout
        costs[f"k{k}"] = cost(raptor)._asdict() | describe(raptor)._asdict()

    predictors = {"identity": distill.repeat_state(teacher.depth)} | _baselines(context, source, teacher) | raptors
    found, skipped = {}, dict(source.skipped)
    for number, (spec, evaluation) in enumerate(evaluations.items()):
        fits = _agreement(context, evaluation, teacher, predictors)
        arrays = {f"{name}/{measure}": values for name, fit in fits.items() for measure, values in _per_image(fit.images)}
        context.save_arrays(folder / f"errors{number or ''}.npz", **arrays)
        found[spec] = {"num_images": fits["identity"].num_images, "fits": {name: _as_lists(fit) for name, fit in fits.items()}}
        skipped |= evaluation.skipped
    return {**found.pop(config.data.eval), "more": found, "costs": costs, "skipped": skipped}


def _baselines(context: Context, source, teacher) -> dict:
    """Predictors fitted to the teacher's states of training images."""
    section = context.config.eval
    if not section.baselines:
        return {}
    images = ConfigDict({"num_images": section.baseline_images, "batch_size": section.batch_size})
    batches = context.measuring_batches(source, teacher.preprocessing, images, "baselines")
    trajectories = ((teacher.trajectory(teacher.normalize_pixels(b["image"])), b["valid"]) for b in batches)
    partitions = {f"k{k}": partition for k, partition in context.partitions().items()}
    return distill.fit_baselines(trajectories, teacher.layout, section.baselines, partitions=partitions)


def _agreement(context: Context, source, teacher, predictors) -> dict[str, distill.TrajectoryFit]:
    label = f"agreement on {source.name}"
    fits = distill.evaluate(
        lambda images: teacher.trajectory(teacher.normalize_pixels(images)),
        predictors,
        teacher.features,
        context.measuring_batches(source, teacher.preprocessing, context.config.eval, label),
        teacher.layout,
    )
    for name, fit in fits.items():
        last = ", ".join(f"{t} {r[-1]:.3f}" for t, r in fit.r2._asdict().items() if len(r))
        print(
            f"distill: {name:<10} R² at the last layer: {last}; mean relative e {fit.relative_error_all.mean():.3f}",
            flush=True,
        )
    return fits


def _config_of(section, teacher, partition) -> RaptorConfig:
    config = RaptorConfig(
        teacher.config,
        partition,
        mlp=section.mlp,
        mlp_dim=round(section.mlp_ratio * teacher.dim),
        depth_scaling=section.depth_scaling,
        layer_scale_init=section.layer_scale_init,
        once=section.unshared == "shallow",
    )
    return unshared(config) if section.unshared == "narrow" else config


def _train(context: Context, folder, stage, source, teacher, raptor_config, blocks):
    config = context.config
    section = config.distill[f"stage{stage}"]
    # Stage 2 sees other crops in another order than stage 1.
    seed = 2 * config.seed + stage
    return distill.train_stage(
        stage,
        teacher,
        raptor_config,
        blocks,
        _batches(context, source, teacher, seed),
        settings_of(distill.StageSettings, section),
        seed=seed,
        batch_size=config.distill.batch_size,
        remat=config.distill.remat,
        mesh=context.mesh,
        folder=folder / f"stage{stage}",
        identity=identity(config.raptor, section) | {"partition": str(raptor_config.partition), "layout": str(teacher.layout)},
        label=f"distill k={raptor_config.partition.k} stage {stage}",
        pieces=config.distill.pieces,
        loop=context.loop,
    )


def _batches(context: Context, source, teacher, seed):
    """Images for the teacher inside the step, or its states where they are kept on disk."""
    config = context.config
    if not config.data.states_gb:
        return context.training_batches(source, teacher.preprocessing, config.distill.batch_size, seed)
    folder, size = context.workdir / "states", config.distill.batch_size
    store = open_states(teacher, source, folder, limit_gb=config.data.states_gb, batch_size=size, mesh=context.mesh)
    return StatesBatches(store, size, seed=seed)


def _per_image(errors: distill.ImageErrors):
    """Pairs (name, `[depth, images]`) such as error_cls and relative_error_all."""
    for measure, values in errors._asdict().items():
        if hasattr(values, "_asdict"):
            yield from ((f"{measure}_{token}", v) for token, v in values._asdict().items() if len(v))
        else:
            yield measure, values


def _as_lists(fit) -> dict:
    """A fit as plain JSON, with 95 % bootstrap intervals over images of every e, by names such as relative_error_cls.

    `intervals` are per layer, `overall` is the mean over layers and its interval.
    """
    out = {}
    for name, value in fit._asdict().items():
        if name == "images":
            continue
        if hasattr(value, "_asdict"):
            out[name] = {t: np.round(v, 6).tolist() for t, v in value._asdict().items() if len(v)}
        else:
            out[name] = np.round(value, 6).tolist()
    if fit.num_images > 1:
        out["intervals"], out["overall"] = {}, {}
        for name, values in _per_image(fit.images):
            band, mean = summarize(values), summarize(values.mean(0))
            out["intervals"][name] = {edge: getattr(band, edge).round(6).tolist() for edge in ("low", "high")}
            out["overall"][name] = {part: round(float(getattr(mean, part)), 6) for part in ("mean", "low", "high")}
    return out
