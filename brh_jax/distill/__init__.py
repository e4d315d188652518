"""Distilling a ViT into a Raptor, and measuring how well it went."""

from brh_jax.distill.agreement import agreement
from brh_jax.distill.baselines import BASELINES, fit_baselines
from brh_jax.distill.evaluation import Classes, ImageErrors, TrajectoryFit, evaluate, repeat_state
from brh_jax.distill.objectives import Blockwise, BlockwiseSettings, Joint, JointSettings, init_blocks
from brh_jax.distill.trainer import raptor_encoder, train_blocks
from brh_jax.distill.validation import Validation

__all__ = [
    "BASELINES",
    "Blockwise",
    "BlockwiseSettings",
    "Classes",
    "ImageErrors",
    "Joint",
    "JointSettings",
    "TrajectoryFit",
    "Validation",
    "agreement",
    "evaluate",
    "fit_baselines",
    "init_blocks",
    "raptor_encoder",
    "repeat_state",
    "train_blocks",
]
