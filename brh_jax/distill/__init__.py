"""Distilling a ViT into a Raptor, and measuring how well it went."""

from brh_jax.distill.baselines import BASELINES, fit_baselines
from brh_jax.distill.evaluation import ImageErrors, TrajectoryFit, evaluate, repeat_state
from brh_jax.distill.objectives import init_blocks
from brh_jax.distill.trainer import STAGE1, STAGE2, StageSettings, raptor_encoder, train_stage

__all__ = [
    "BASELINES",
    "STAGE1",
    "STAGE2",
    "ImageErrors",
    "StageSettings",
    "TrajectoryFit",
    "evaluate",
    "fit_baselines",
    "init_blocks",
    "raptor_encoder",
    "repeat_state",
    "train_stage",
]
