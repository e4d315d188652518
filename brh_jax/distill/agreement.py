"""How near a Raptor comes to its teacher, on a batch of images."""

import numpy as np

from brh_jax.distill.evaluation import TrajectoryFit, evaluate
from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.types import Array, Images


def agreement(teacher: Encoder, raptor: Encoder, images: Images) -> TrajectoryFit:
    """R², cosine and e of the hypothesis, layer by layer and per token type, of a Raptor rolled out from the teacher's a_0.

    `agreement(...).plot()` draws it. A run measures this on any number of images, with baselines beside it.

    Args:
        teacher: the ViT.
        raptor: what stands for it, of its depth and width.
        images: preprocessed, `[batch, height, width, 3]`; ones that the Raptor has not been trained on.

    Raises:
        UserError: models of different depth or width, or no images.
    """
    ours, theirs = (raptor.depth, raptor.dim), (teacher.depth, teacher.dim)
    if ours != theirs:
        raise UserError(f"{raptor.name} has depth and width {ours}, {teacher.name} {theirs}: it does not stand for it")
    if not len(images):
        raise UserError("no images to compare on")
    layout = teacher.layout_for(*np.shape(images)[1:3])
    batch = {"image": images, "valid": np.ones(len(images), bool), "label": np.full(len(images), -1)}

    def roll(state: Array) -> Array:
        return raptor.at_size(np.shape(images)[1:3]).rollout(state)

    return evaluate(teacher.trajectory, {"raptor": roll}, teacher.features, [batch], layout)["raptor"]
