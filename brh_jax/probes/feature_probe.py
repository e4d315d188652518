"""Probes on features that are there already: weighted k-NN as in DINO, and logistic regression by L-BFGS."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.probes.heads import choose
from brh_jax.types import Features, Labels
from brh_jax.vectors import unit


def knn_predict(
    features: Features,
    labels: Labels,
    queries: Features,
    num_classes: int,
    neighbours: Sequence[int],
    *,
    temperature: float = 0.07,
    chunk: int = 256,
) -> dict[int, np.ndarray]:
    """Classes by a vote of the nearest training images, each with weight exp(cosine / temperature) (Caron et al. 2021).

    Args:
        features, labels: of the training set, `[n, features]` and `[n]`.
        queries: `[m, features]`.
        neighbours: numbers of neighbours k, several at once.

    Returns:
        k -> predicted classes `[m]`.

    Raises:
        UserError: more neighbours than training images, or none.
    """
    neighbours = tuple(int(k) for k in neighbours)
    if not neighbours or min(neighbours) < 1 or max(neighbours) > len(features):
        raise UserError(f"k-NN with {neighbours} neighbours of {len(features)} training images: expected 1 to {len(features)}")
    bank, labels = unit(jnp.asarray(features)), jnp.asarray(labels)
    found = [
        _vote(bank, labels, unit(jnp.asarray(queries[at : at + chunk])), num_classes, neighbours, temperature)
        for at in range(0, len(queries), chunk)
    ]
    return {k: np.concatenate([np.asarray(part[i]) for part in found]) for i, k in enumerate(neighbours)}


@functools.partial(jax.jit, static_argnames=("num_classes", "neighbours"))
def _vote(bank, labels, queries, num_classes, neighbours, temperature):
    cosine, nearest = jax.lax.top_k(jnp.matmul(queries, bank.T, precision="highest"), max(neighbours))
    # Relative to the nearest: exp(1 / 0.07) is large but finite, exp of a smaller temperature is not.
    weights = jnp.exp((cosine - cosine[:, :1]) / temperature)
    votes = weights[..., None] * jax.nn.one_hot(labels[nearest], num_classes)
    return [jnp.argmax(votes[:, :k].sum(1), -1) for k in neighbours]


def logistic_predict(
    features: Features,
    labels: Labels,
    queries: Features,
    *,
    strengths: Sequence[float] = (1.0,),
    held_out: float = 0.1,
    seed: int = 0,
    max_iter: int = 1000,
) -> tuple[np.ndarray, float, dict[float, float]]:
    """Classes by multinomial logistic regression on standardised features, fitted by L-BFGS (scikit-learn).

    Args:
        strengths: inverse strengths C of the L2 penalty; of several, the one that does best on a held-out share of the training
            set is fitted again on all of it.

    Returns:
        predicted classes `[m]`, the C chosen, and the held-out accuracy of each.

    Raises:
        UserError: fewer than two classes in the training set.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = np.asarray(features, np.float64), np.asarray(labels)
    if len(np.unique(labels)) < 2:
        raise UserError("logistic regression needs training images of two classes or more")

    def fit(strength, rows):
        model = LogisticRegression(C=strength, solver="lbfgs", max_iter=max_iter)
        return make_pipeline(StandardScaler(), model).fit(features[rows], labels[rows])

    def score(strength, rest, held):
        return fit(strength, rest).score(features[held], labels[held])

    best, scores = choose(tuple(strengths), len(labels), held_out, seed, score)
    return fit(best, slice(None)).predict(np.asarray(queries, np.float64)), best, scores
