"""What all probes share: training a linear head on a frozen encoder, choosing its learning rate, intervals over images."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.errors import UserError
from brh_jax.models.encoder import Encoder
from brh_jax.statistics import bootstrap_counts
from brh_jax.train.loop import Run, adamw, train
from brh_jax.train.parallel import to_host


def train_head(
    loss_fn: Callable,
    head: Any,
    batches: Any,
    num_steps: int,
    settings: Any,
    run: Run,
    *,
    batch_size: int,
    encoder: Encoder | None = None,
    optimiser: optax.GradientTransformation | None = None,
    seen_in: Callable | None = None,
) -> tuple[Any, Any]:
    """Trains a head, by AdamW with clipped gradients unless told otherwise.

    Args:
        loss_fn: (head, encoder, batch) -> loss.
        head: what to start from, a pytree.
        settings: has `clip_norm` and what `train.loop.adamw` wants.
        batch_size: of all processes together.
        encoder: the frozen encoder, handed to `loss_fn`.
        optimiser: in the place of the clipped AdamW that the settings describe.
        seen_in: batch -> bool `[classes]`, which of them the batch holds; gathered over all batches, also of a run that was
            stopped and goes on.

    Returns:
        The head, and what was seen (None without `seen_in`).
    """
    optimiser = optimiser or optax.chain(optax.clip_by_global_norm(settings.clip_norm), adamw(settings, num_steps)[0])

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, encoder, batch):
        loss, grads = jax.value_and_grad(loss_fn)(state["head"], encoder, batch)
        updates, opt_state = optimiser.update(grads, state["opt_state"], state["head"])
        found = {"head": optax.apply_updates(state["head"], updates), "opt_state": opt_state}
        if seen_in is not None:
            found["seen"] = state["seen"] | seen_in(batch)
        return found, {"loss": loss}

    placed = encoder and encoder.on(run.mesh)

    def step(state, batch, index):
        return update(state, placed, batch)

    head = jax.tree.map(jnp.copy, head)  # the loop donates its state
    state = {"head": head, "opt_state": optimiser.init(head)}
    if seen_in is not None:
        state["seen"] = jnp.zeros(head["bias"].shape, bool)
    state = to_host(train(step, state, batches, run, num_steps=num_steps, batch_size=batch_size))
    return state["head"], state.get("seen")


def split_rows(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, at random; every row is in one of them.

    Raises:
        UserError: one of them would be empty.
    """
    held = round(share * count)
    if not 0 < held < count:
        raise UserError(f"held_out is {share}: of {count} images that leaves {held} to choose by, expected some and not all")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def choose(candidates: Sequence[float], count: int, share: float, seed: int, score: Callable) -> tuple[float, dict[float, float]]:
    """The setting that does best on a held-out part of the training set; the test set has no say.

    Args:
        candidates: settings to choose from; a single one is not tried.
        count: images of the training set.
        share: of them that is held out.
        score: (candidate, rows to train on, rows to measure) -> score, higher is better.

    Returns:
        The best, and the score of each (empty where there was no choice).
    """
    if len(candidates) == 1:
        return candidates[0], {}
    rest, held = split_rows(count, share, seed)
    scores = {candidate: float(score(candidate, rest, held)) for candidate in candidates}
    return max(scores, key=scores.__getitem__), scores


def bootstrap_interval(
    counts: Any, statistic: Callable, *, seed: int = 0, num_resamples: int = 1000, level: float = 0.95, groups: Any = None
) -> tuple[float, float]:
    """Percentile bootstrap over images of a statistic of summed counts (Efron and Tibshirani 1993, section 13.3).

    Args:
        counts: `[images, ...]`; summed over the images that a draw takes.
        statistic: sum `[...]` -> float.
        groups: `[images]`, what is drawn, see `statistics.bootstrap_counts`; None for the images.

    Returns:
        (low, high).
    """
    counts = np.asarray(counts, np.float64)
    flat, num_images = counts.reshape(len(counts), -1), len(counts)
    draws = bootstrap_counts(num_images, num_resamples, seed, groups)
    found = [statistic((draw @ flat).reshape(counts.shape[1:])) for draw in draws]
    low, high = np.nanquantile(found, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
