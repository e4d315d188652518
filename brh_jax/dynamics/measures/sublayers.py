"""Attention and feed-forward apart: the angle that each turns a token by."""

from brh_jax.curves import Curve, by_token
from brh_jax.dynamics.directions import direction_measures
from brh_jax.dynamics.measure import Measure, Picture, Seen, along_depth
from brh_jax.tokens import ByToken


def _compute(seen: Seen) -> ByToken | None:
    """Angular speed of the half-layers, attention and feed-forward in turn, `[2 depth, images]`."""
    if seen.sublayers is None:
        return None
    return direction_measures([seen.sublayers.rollout(seen.start)], seen.layout).speed


def _curves(speed: ByToken) -> dict[str, Curve]:
    attention, mlp = (ByToken(*(v[first::2] for v in speed)) for first in (0, 1))
    return by_token("attention_speed", attention, "layers") | by_token("mlp_speed", mlp, "layers")


MEASURE = Measure(
    "sublayers",
    on="tangent",
    compute=_compute,
    curves=_curves,
    figures=(
        Picture(
            "sublayers",
            "Attention and feed-forward apart",
            "The half with the higher line is the one that turns the tokens. The angle that each half of a layer turns a "
            "token by.",
            along_depth(
                ("attention_speed", "attention: angle turned\n(rad)", "linear"),
                ("mlp_speed", "feed-forward: angle turned\n(rad)", "linear"),
            ),
        ),
    ),
)
