"""Finds what is wrong with a configuration before any work is done."""

from brh_jax.errors import UserError
from brh_jax.models import registry

METHODS = ("max_cut", "contrast_cut", "recursive_bisection", "random_contiguous", "random_fragmented", "given")
AUGMENTS = ("center_crop", "random_resized_crop")
DTYPES = ("float32", "bfloat16")


def check_config(config) -> None:
    """Raises UserError naming the setting, its value, and what was expected."""
    if not config.teacher.source:
        raise UserError("config.teacher.source is empty: expected hf:organisation/model, a weight file or folder, or train")
    if config.teacher.arch:
        registry.architecture(config.teacher.arch)
    for name in ("train", "eval"):
        if not config.data[name]:
            raise UserError(f"config.data.{name} is empty: expected tfds:NAME:SPLIT, folder:PATH, idx:PATH or digits:SPLIT")
    _one_of(config, "data.augment", AUGMENTS)
    _one_of(config, "data.eval_augment", AUGMENTS)
    _one_of(config, "phases.method", METHODS)
    _one_of(config, "compute_dtype", DTYPES)
    if config.phases.method == "given" and not config.phases.lengths:
        raise UserError(
            "config.phases.lengths is empty, but config.phases.method is given: expected phase lengths such as (7,3,2)"
        )
    if not config.phases.k or any(not isinstance(k, int) or k < 1 for k in config.phases.k):
        raise UserError(f"config.phases.k is {config.phases.k}: expected numbers of phases such as (2,3)")
    if bool(config.probe.train) != bool(config.probe.eval):
        raise UserError("config.probe.train and config.probe.eval go together: give both, or leave both empty")
    for name in ("phases", "distill", "eval", "dynamics"):
        if config[name].batch_size < 1:
            raise UserError(f"config.{name}.batch_size is {config[name].batch_size}: expected a positive number of images")


def _one_of(config, name, expected):
    value = config
    for part in name.split("."):
        value = value[part]
    if value not in expected:
        raise UserError(f"config.{name} is {value!r}: expected one of {', '.join(expected)}")
