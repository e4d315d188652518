"""The recipe for few images: blocks trained as a whole from the first step (docs/experiments.md says what led to it)."""

from typing import Any

from brh_jax.distill.objectives import JointSettings

# What a block is otherwise than the paper's: a third less work, and branches that count from the first step.
BLOCK: dict[str, Any] = {"mlp": "gelu", "layer_scale_init": 0.3}


def joint_recipe(steps: int) -> JointSettings:
    """How blocks are trained in so many steps: the logarithm of each layer's error, Muon, rollouts that grow from restarts."""
    return JointSettings(
        steps=steps,
        warmup_steps=min(max(steps // 50, 10), steps // 2),
        restarts=0.3,
        loss="log",
        optimizer="muon",
        learning_rate=0.03,
        final_learning_rate=3e-4,
        weight_decay=0.0,
        token_weights=(0.4, 0.2, 0.4),
    )
