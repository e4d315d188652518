"""In how many directions layers move tokens, and how these turn from one layer to the next."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from brh_jax.curves import Curve, by_token
from brh_jax.dynamics.measure import Measure, Picture, Seen, add, along_depth, join_images
from brh_jax.dynamics.rank import (
    UpdateGrams,
    UpdateRank,
    gram_rank,
    num_update_directions,
    principal_angles,
    update_grams,
    update_rank,
)
from brh_jax.readable import readable
from brh_jax.tokens import ByToken


@readable(turn="rad")
class Ranks(NamedTuple):
    """Ranks of updates.

    Attributes:
        angular: of angular updates about their mean, over all tokens of all images.
        uncentred: the same with the mean update left in, what all tokens are moved by alike.
        raw: as `angular`, of raw updates.
        tokens: as `angular`, over the tokens of each of the linear images and about their mean; None without.
        turn: largest angle between the subspaces of neighbouring layers' angular updates, ByToken `[depth - 1]`, radians.
    """

    angular: UpdateRank
    uncentred: UpdateRank
    raw: UpdateRank
    tokens: UpdateRank | None
    turn: ByToken


def _num_angles(seen: Sequence[Seen]) -> ByToken:
    """As many directions as every layer of every system moves a type of token in, so that angles compare."""
    directions = [num_update_directions(one.gathered["angular"]) for one in seen]
    most = seen[0].settings.num_angles
    defined = [ByToken(*(d[~np.isnan(d)] for d in of_system)) for of_system in directions]
    return ByToken(*(min([most, *(int(d.min()) for d in of_type if d.size)]) for of_type in zip(*defined, strict=True)))


def _compute(seen: Seen) -> Ranks:
    per_image = [update_rank(jnp.asarray(held), seen.layout, over="tokens", per_image=True) for held in seen.trajectories]
    return Ranks(
        gram_rank(seen.gathered["angular"]),
        gram_rank(seen.gathered["angular"], center=False),
        gram_rank(seen.gathered["raw"]),
        functools.reduce(join_images, per_image) if per_image else None,
        _turn(seen.gathered["angular"], seen.shared),
    )


def _turn(grams: UpdateGrams, num_angles: ByToken) -> ByToken:
    """Largest principal angle, token type by token type, as one may move in fewer directions than another."""

    def of_type(token, number):
        if len(getattr(grams.gram, token)) < 2 or not number:
            return np.zeros(0)
        alone = UpdateGrams(*(ByToken(*(v if t == token else v[:0] for t, v in of._asdict().items())) for of in grams))
        return getattr(principal_angles(alone, num_directions=int(number)), token)[:, -1]

    return ByToken(*map(of_type, ByToken._fields, num_angles))


def _curves(ranks: Ranks) -> dict[str, Curve]:
    found = {}
    kinds = {"": ranks.angular, "uncentred_": ranks.uncentred, "raw_": ranks.raw, "token_": ranks.tokens}
    for prefix, of_kind in kinds.items():
        if of_kind is not None:
            found |= by_token(f"{prefix}stable_rank", of_kind.stable, "layers")
            found |= by_token(f"{prefix}effective_rank", of_kind.effective, "layers")
            found |= by_token(f"{prefix}participation", of_kind.participation, "layers")
    return found | by_token("turn", ranks.turn, "between layers")


MEASURE = Measure(
    "ranks",
    gather=lambda states, layout: {kind: update_grams([states], layout, kind=kind) for kind in ("angular", "raw")},
    merge=add,
    share=_num_angles,
    compute=_compute,
    curves=_curves,
    figures=(
        Picture(
            "ranks",
            "Ranks of updates",
            "A low rank is a layer that moves all tokens in few directions. Of the angular updates of all tokens of all "
            "images together, about their mean, as the paper's figures are taken to be; with the mean left in, where what all "
            "tokens are moved by alike hides the rest; of the raw ones, lengths and all; and of the angular ones over the "
            "tokens of one image, mean over images. Last the largest angle between the leading update directions of "
            "neighbouring layers: zero where they move tokens in the same directions, π/2 where each has its own.",
            along_depth(
                ("stable_rank", "stable rank", "log"),
                ("effective_rank", "effective rank", "log"),
                ("participation", "participation ratio", "log"),
                ("uncentred_stable_rank", "stable rank\nwith the mean update", "log"),
                ("raw_stable_rank", "stable rank\nof raw updates", "log"),
                ("token_stable_rank", "stable rank, over the\ntokens of an image", "log"),
                ("turn", "largest angle to the\nnext layer's updates (rad)", "linear"),
            ),
        ),
    ),
)
