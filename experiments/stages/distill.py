"""Distillation: a Raptor for every partition, and its agreement with the teacher."""

import pathlib

import jax
import numpy as np

from brh_jax import distill
from brh_jax.data.states import StatesBatches, open_states
from brh_jax.models import RaptorConfig
from brh_jax.models.cost import cost
from brh_jax.parallel import to_host
from experiments.context import Context, identity, settings_of


def run(context: Context, folder: pathlib.Path) -> dict:
    """Leaves every Raptor in `kN/raptor/`; agreement is measured on images that were not trained on."""
    config, teacher = context.config, context.teacher()
    source = context.source(config.data.train)
    predictors, costs = {"identity": distill.repeat_state(teacher.depth)}, {}
    for k, partition in context.partitions().items():
        raptor_config = RaptorConfig(
            teacher.config,
            partition,
            mlp=config.raptor.mlp,
            mlp_dim=round(config.raptor.mlp_ratio * teacher.dim),
            depth_scaling=config.raptor.depth_scaling,
            layer_scale_init=config.raptor.layer_scale_init,
        )
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
            predictors[f"k{k}" if stage == last else f"k{k}_stage1"] = raptor.rollout
        costs[f"k{k}"] = cost(raptor)._asdict()

    evaluation = context.source(config.data.eval)
    batches = context.measuring_batches(evaluation, teacher.preprocessing, config.eval, "agreement with teacher")
    fits = distill.evaluate(
        lambda images: teacher.trajectory(teacher.normalize_pixels(images)),
        predictors,
        teacher.features,
        batches,
        teacher.layout,
    )
    for name, fit in fits.items():
        last = ", ".join(f"{t} {r[-1]:.3f}" for t, r in fit.r2._asdict().items() if len(r))
        print(
            f"distill: {name:<10} R² at the last layer: {last}; mean relative e {fit.relative_error_all.mean():.3f}",
            flush=True,
        )
    return {
        "num_images": fits["identity"].num_images,
        "fits": {name: _as_lists(fit) for name, fit in fits.items()},
        "costs": costs,
        "skipped": source.skipped | evaluation.skipped,
    }


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


def _as_lists(fit) -> dict:
    out = {}
    for name, value in fit._asdict().items():
        if hasattr(value, "_asdict"):
            out[name] = {t: np.round(v, 6).tolist() for t, v in value._asdict().items() if len(v)}
        else:
            out[name] = np.round(value, 6).tolist()
    return out
