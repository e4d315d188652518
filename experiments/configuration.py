"""Finds what is wrong with a configuration before any work is done."""

import numpy as np

from brh_jax.distill import BASELINES
from brh_jax.errors import UserError
from brh_jax.models import registry, remat
from brh_jax.models.layers import MLP_KINDS
from brh_jax.phases import METRICS as PHASE_METRICS
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
    "distill.stage2.steps",
    "eval.batch_size",
    "eval.num_images",
    "eval.baseline_images",
    "probe.epochs",
    "probe.batch_size",
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
    if bool(config.probe.train) != bool(config.probe.eval):
        raise UserError("config.probe.train and config.probe.eval go together: give both, or leave both empty")
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


def _value(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def _one_of(config, name, expected):
    value = _value(config, name)
    if value not in expected:
        raise UserError(f"config.{name} is {value!r}: expected one of {', '.join(expected)}")
