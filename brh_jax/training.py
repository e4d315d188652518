"""The one training loop: resumable, with metrics and a progress line; what a step does is the caller's."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from brh_jax.checkpoints import Checkpoints
from brh_jax.errors import UserError
from brh_jax.metrics import MetricsFile, Progress
from brh_jax.parallel import replicate, shard_batch


def train(
    step: Callable,
    state: Any,
    batches,
    *,
    num_steps: int,
    folder,
    identity: dict,
    mesh,
    label: str,
    batch_size: int,
    log_every: int = 10,
    save_every: int = 1000,
    stop_after: int | None = None,
):
    """Runs `state, metrics = step(state, batch, index)` until `num_steps`, going on from the newest checkpoint if there is one.

    Args:
        step: jitted; metrics is a flat dictionary of scalars with a `loss`.
        state: what is trained, a pytree; replicated over the mesh.
        batches: grain's iterator, with `get_state` and `set_state`.
        folder: gets `checkpoints/` and `metrics.jsonl`.
        identity: see Checkpoints.
        stop_after: stop at this step, checkpoint saved, as a run that was killed would (for tests).

    Returns:
        The state after the last step.

    Raises:
        UserError: the loss is not finite; the last good checkpoint stays.
    """
    state = replicate(state, mesh)
    with Checkpoints(folder / "checkpoints", identity) as checkpoints:
        restored = checkpoints.restore(state)
        start = 0
        if restored is not None:
            start, state, position = restored
            batches.set_state(position)
            if start < num_steps:
                print(f"{label}: going on from step {start} of {num_steps}", flush=True)
        metrics_file = MetricsFile(folder / "metrics.jsonl", resume_step=start)
        progress = Progress(label, num_steps, per_step=batch_size)
        pending = []
        end = num_steps if stop_after is None else min(stop_after, num_steps)
        for index in range(start, end):
            batch = shard_batch(next(batches), mesh)
            state, metrics = step(state, batch, index)
            pending.append(metrics)
            done = index + 1
            saving = done % save_every == 0 or done == end
            if done == start + 1 or done % log_every == 0 or saving:
                rows, pending = jax.device_get(pending), []
                means = {k: float(np.mean([row[k] for row in rows])) for k in metrics}
                if not np.isfinite(means["loss"]):
                    raise UserError(
                        f"{label}: the loss is {means['loss']} between steps {max(done - log_every, start)} and {done}; "
                        "the last good checkpoint is kept. Lower the learning rate, lengthen the warm-up, or look at the data"
                    )
                rate = progress.update(done, f"loss {means['loss']:.4f}")
                metrics_file.write(done, means | ({"images_per_second": rate} if rate else {}))
            if saving:
                checkpoints.save(done, state, batches.get_state())
        metrics_file.close()
    return state


def adamw(settings, num_steps: int):
    """AdamW with linear warm-up and cosine decay, and its schedule (paper, sections 4 and 9).

    Args:
        settings: has `learning_rate`, `final_learning_rate`, `warmup_steps` and `weight_decay`.
    """
    peak, last = settings.learning_rate, settings.final_learning_rate
    warmup_steps = min(settings.warmup_steps, num_steps - 1)
    start = 0.0 if warmup_steps else peak
    schedule = optax.warmup_cosine_decay_schedule(start, peak, warmup_steps, num_steps, last)
    return optax.adamw(schedule, weight_decay=settings.weight_decay), schedule
