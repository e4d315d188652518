"""Finds what is wrong with a configuration before any work is done."""

from dataclasses import fields

import numpy as np

from brh_jax.distill import BASELINES
from brh_jax.distill.trainer import TEACHER_FORCING
from brh_jax.errors import UserError
from brh_jax.interventions import PARTS
from brh_jax.models import registry, remat
from brh_jax.models.layers import MLP_KINDS
from brh_jax.phases import METRICS as PHASE_METRICS
from brh_jax.probes.depth import DepthSettings
from experiments.context import settings_of
from experiments.stages.phases import partitions_of

METHODS = ("max_cut", "contrast_cut", "recursive_bisection", "random_contiguous", "random_fragmented", "given")
AUGMENTS = ("center_crop", "random_resized_crop")
DTYPES = ("float32", "bfloat16")
_POSITIVE = (
    "data.threads",
    "phases.batch_size",
    "phases.num_images",
    "phases.threshold",
    "raptor.mlp_ratio",
    "distill.batch_size",
    "distill.log_every",
    "distill.save_every",
    "distill.keep_last",
    "distill.pieces",
    "distill.stage1.steps",
    "eval.batch_size",
    "eval.num_images",
    "eval.baseline_images",
    "probe.epochs",
    "probe.batch_size",
    "segmentation.image_size",
    "segmentation.epochs",
    "segmentation.batch_size",
    "segmentation.eval_batch_size",
    "depth.epochs",
    "depth.batch_size",
    "depth.eval_batch_size",
    "quick.temperature",
    "interventions.batch_size",
    "interventions.num_permutations",
    "dynamics.batch_size",
    "dynamics.num_images",
    "dynamics.linear_images",
    "dynamics.num_directions",
    "dynamics.num_exponents",
    "dynamics.num_values",
    "dynamics.num_angles",
    "dynamics.rank",
)


def check_config(config) -> None:
    """Raises UserError naming the setting, its value, and what was expected."""
    if not config.teacher.source:
        raise UserError("config.teacher.source is empty: expected hf:organisation/model, a weight file or folder, or train")
    if config.teacher.source.startswith("random:"):
        registry.architecture(config.teacher.source.removeprefix("random:"))
    if config.teacher.arch:
        registry.architecture(config.teacher.arch)
    for name in ("train", "eval"):
        if not config.data[name]:
            raise UserError(f"config.data.{name} is empty: expected tfds:NAME:SPLIT, folder:PATH, idx:PATH or digits:SPLIT")
    _one_of(config, "data.augment", AUGMENTS)
    _one_of(config, "data.eval_augment", AUGMENTS)
    _one_of(config, "phases.method", METHODS)
    _one_of(config, "compute_dtype", DTYPES)
    for name in config.eval.baselines:
        if name not in BASELINES:
            raise UserError(f"config.eval.baselines names {name!r}: expected some of {', '.join(BASELINES)}")
    for metric in config.phases.metrics:
        if metric not in PHASE_METRICS:
            raise UserError(f"config.phases.metrics names {metric!r}: expected some of {', '.join(PHASE_METRICS)}")
    if config.phases.bootstrap < 0:
        raise UserError(f"config.phases.bootstrap is {config.phases.bootstrap}: expected a number of resamples, or 0 for none")
    if config.phases.method == "given" and not config.phases.lengths:
        raise UserError(
            "config.phases.lengths is empty, but config.phases.method is given: expected phase lengths such as (7,3,2)"
        )
    if not config.phases.k or any(not isinstance(k, int) or k < 1 for k in config.phases.k):
        raise UserError(f"config.phases.k is {config.phases.k}: expected numbers of phases such as (2,3)")
    for name in ("probe", "segmentation", "depth", "quick"):
        _check_probe(name, config[name])
    _one_of(config, "raptor.mlp", MLP_KINDS)
    _one_of(config, "raptor.unshared", ("", "narrow", "shallow"))
    _one_of(config, "distill.remat", tuple(remat.POLICIES))
    if config.distill.batch_size % config.distill.pieces:
        raise UserError(
            f"config.distill.pieces is {config.distill.pieces}: expected a divisor of the batch, {config.distill.batch_size}"
        )
    if config.data.states_gb < 0:
        raise UserError(f"config.data.states_gb is {config.data.states_gb}: expected a size in GB, or 0")
    if config.data.states_gb and config.data.augment != "center_crop":
        raise UserError(
            f"config.data.states_gb keeps one state for each image, but config.data.augment is {config.data.augment}: set "
            "config.data.augment=center_crop, or config.data.states_gb=0"
        )
    for name in _POSITIVE:
        if not _value(config, name) > 0:
            raise UserError(f"config.{name} is {_value(config, name)}: expected a positive number")
    _check_interventions(config.interventions)
    if config.distill.stage2.steps < 0:
        raise UserError(f"config.distill.stage2.steps is {config.distill.stage2.steps}: expected 0 (no stage 2) or more")
    _one_of(config, "distill.stage1.teacher_forcing", TEACHER_FORCING)
    for name in ("distill.stage1.token_weights", "distill.stage2.token_weights"):
        if len(weights := _value(config, name)) not in (0, 3):
            raise UserError(f"config.{name} is {weights}: expected three, of cls, registers, patches, or () for the plain mean")
    for name, least in (("tangent_images", 0), ("influence_probes", 0), ("num_probes", 2)):
        if config.dynamics[name] < least:
            raise UserError(f"config.dynamics.{name} is {config.dynamics[name]}: expected {least} or more")
    if 0 != config.dynamics.extrapolated_steps < 16:
        raise UserError(f"config.dynamics.extrapolated_steps is {config.dynamics.extrapolated_steps}: expected 0, or 16 or more")
    if not config.dynamics.relative_sizes or not all(size > 0 for size in config.dynamics.relative_sizes):
        raise UserError(
            f"config.dynamics.relative_sizes is {config.dynamics.relative_sizes}: expected positive sizes such as (1e-2,)"
        )
    vit = config.teacher.get("vit")
    if config.teacher.source == "train" and vit is not None:
        if not vit.patch_size > 0:
            raise UserError(f"config.teacher.vit.patch_size is {vit.patch_size}: expected a number of pixels")
        # With pretrained weights the depth is not known yet; then the phases stage says it.
        partitions_of(np.zeros((vit.depth,) * 2), config.phases)


def _check_probe(name, section):
    if bool(section.train) != bool(section.eval):
        raise UserError(f"config.{name}.train and config.{name}.eval go together: give both, or leave both empty")
    if not 0 < section.held_out < 1:
        raise UserError(f"config.{name}.held_out is {section.held_out}: expected a share of the training set between 0 and 1")
    choice = "strengths" if name == "quick" else "learning_rates"
    if not all(value > 0 for value in section[choice]) or (name == "quick" and not section.strengths):
        raise UserError(f"config.{name}.{choice} is {section[choice]}: expected positive numbers such as (0.001, 0.01)")
    if name == "depth":
        settings_of(DepthSettings, {k: v for k, v in section.items() if k in {f.name for f in fields(DepthSettings)}})


def _check_interventions(section):
    for name in ("num_images", "num_swaps"):
        if section[name] < 0:
            raise UserError(f"config.interventions.{name} is {section[name]}: expected 0 or more")
    if section.num_images == 1:
        raise UserError("config.interventions.num_images is 1: expected 0, or two or more for intervals over images")
    if not section.num_layers or any(not isinstance(n, int) or n < 1 for n in section.num_layers):
        raise UserError(f"config.interventions.num_layers is {section.num_layers}: expected numbers such as (1,2,3)")
    if unknown := [part for part in section.parts if part not in PARTS]:
        raise UserError(f"config.interventions.parts names {unknown[0]!r}: expected some of {', '.join(PARTS)}")


def _value(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def _one_of(config, name, expected):
    value = _value(config, name)
    if value not in expected:
        raise UserError(f"config.{name} is {value!r}: expected one of {', '.join(expected)}")
