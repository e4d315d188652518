"""What updates a model's parameters: AdamW, or Muon, which has to know which of them are matrices and how they lie."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax
from jax.sharding import PartitionSpec

from brh_jax.errors import expect_not_negative, expect_one_of
from brh_jax.models.layers import KERNELS
from brh_jax.train.loop import AdamwSettings, adamw

OPTIMIZERS = ("adamw", "muon")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(AdamwSettings):
    """How a model is optimised.

    Attributes:
        optimizer: adamw, or muon: matrices of attention and feed-forward layers by their orthogonalised momentum, all else by
            AdamW. A learning rate of muon is the largest singular value of a step, or that times the root of outputs over inputs
            where there are more of them, which serves models of any width.
        vector_learning_rate: of all else, where the optimiser is muon; it rises and falls with the other.
    """

    optimizer: str = "adamw"
    vector_learning_rate: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        expect_not_negative(self, "vector_learning_rate")
        expect_one_of(self, "optimizer", OPTIMIZERS)


def optimizer(settings: OptimizerSettings, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW or Muon, without the clipping of gradients, and the schedule of its learning rate."""
    adam, schedule = adamw(settings, num_steps)
    return (muon(schedule, settings) if settings.optimizer == "muon" else adam), schedule


def muon(schedule: optax.Schedule, settings: OptimizerSettings) -> optax.GradientTransformation:
    """Muon (Jordan et al., 2024) for the matrices of attention and feed-forward layers, queries, keys, values, gates each by
    itself, AdamW for the rest."""
    ratio = settings.vector_learning_rate / settings.learning_rate

    def axes(params):
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _matrix_axes(path), params)

    return optax.contrib.muon(
        schedule,
        weight_decay=settings.weight_decay,
        adam_weight_decay=settings.weight_decay,
        adam_b2=0.98,
        adam_learning_rate=lambda step: ratio * schedule(step),
        muon_weight_dimension_numbers=axes,
    )


def _matrix_axes(path: tuple) -> optax.contrib.MuonDimensionNumbers | None:
    """Which axes of the kernel at that path are its inputs and its outputs; None for what is no kernel of a block's layer."""
    names = tuple(key.key for key in path)
    axes = KERNELS.get(names[-3:])
    if axes is None:
        return None
    inputs, outputs = axes
    if names[0] in ("a", "b"):  # factors of `low_rank`
        inputs, outputs = (-2,), (-1,)
    elif names[0] == "shared" or names[-4:-3] == ("blocks",):  # phases come first there, or a ViT's layers
        inputs, outputs = (tuple(axis + (axis >= 0) for axis in found) for found in axes)
    return optax.contrib.MuonDimensionNumbers(inputs, outputs)


def optimized_specs(boxed: Any, optimiser: optax.GradientTransformation) -> tuple[Any, Any]:
    """The names of the dimensions of parameters, and of what an optimiser keeps of them, see `train.parallel.shardings`.

    Args:
        boxed: shapes of the parameters, see `encoder.boxed_params`.
    """
    params, specs = nn.unbox(boxed), nn.get_partition_spec(boxed)

    def masked(node) -> bool:
        return isinstance(node, optax.MaskedNode)  # a parameter that another part of the optimiser has

    # What the optimiser keeps of a parameter is split as the parameter; all else is whole on every device.
    kept = optax.tree.map_params(
        optimiser,
        lambda leaf, spec: leaf if masked(leaf) else spec,
        jax.eval_shape(optimiser.init, params),
        specs,
        transform_non_params=lambda leaf: PartitionSpec(),
        is_leaf=masked,
    )
    return specs, kept
