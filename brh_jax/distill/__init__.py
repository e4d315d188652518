"""Distilling a ViT into a Raptor, and measuring how well it went."""

from brh_jax.distill.evaluation import TrajectoryFit, evaluate, repeat_state
from brh_jax.distill.objectives import init_blocks
from brh_jax.distill.trainer import STAGE1, STAGE2, StageSettings, raptor_encoder, train_stage

__all__ = [
    "STAGE1",
    "STAGE2",
    "StageSettings",
    "TrajectoryFit",
    "evaluate",
    "init_blocks",
    "raptor_encoder",
    "repeat_state",
    "train_stage",
]
