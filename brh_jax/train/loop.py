"""The one training loop: resumable, with metrics and a progress line; what a step does is the caller's."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from brh_jax.errors import UserError
from brh_jax.train import stopping
from brh_jax.train.checkpoints import Checkpoints
from brh_jax.train.hardware import memory, peak_flops
from brh_jax.train.metrics import MetricsFile, Progress
from brh_jax.train.parallel import shard, shard_batch


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How a loop runs, without effect on what comes out.

    Attributes:
        log_every, save_every: steps between rows of metrics and between checkpoints.
        keep_last, keep_best: checkpoints that are kept; best by the training loss since the one before.
        tensorboard: whether metrics go to TensorBoard too.
        profile: (first, last) step to trace with jax's profiler into `profile/`, or None.
    """

    log_every: int = 10
    save_every: int = 1000
    keep_last: int = 2
    keep_best: int = 1
    tensorboard: bool = False
    profile: tuple[int, int] | None = None


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
    flops_per_image: dict[str, float] | None = None,
    visits: dict[int, Callable] | None = None,
    stop_after: int | None = None,
    loop: LoopSettings = LoopSettings(),
):
    """Runs `state, metrics = step(state, batch, index)` until `num_steps`, going on from the newest checkpoint if there is one.

    Args:
        step: jitted, its first argument donated; metrics is a flat dictionary of scalars with a `loss`.
        state: what is trained, a pytree; laid over the mesh by `parallel.RULES`.
        batches: an iterator with `seek(step)`.
        folder: gets `checkpoints/`, `metrics.jsonl` and what `loop` asks for.
        identity: see Checkpoints.
        batch_size: of all processes together.
        flops_per_image: of a step, by who spends them ("teacher", "student"), where that is known.
        visits: number of steps done -> function called with the state then; 0 is the start. A run that goes on from a checkpoint
            before such a step calls it again, with the same state.
        stop_after: stop at this step, checkpoint saved, as a run that was killed would (for tests).

    Returns:
        The state after the last step.

    Raises:
        UserError: the loss is not finite; the last good checkpoint stays.
        Stopped: the run was told to stop; the state is saved.
    """
    state, visits = shard(state, mesh), visits or {}
    kept = {"keep_last": loop.keep_last, "keep_best": loop.keep_best}
    with Checkpoints(folder / "checkpoints", identity, **kept) as checkpoints:
        restored = checkpoints.restore(state)
        start = 0
        if restored is not None:
            start, state = restored
            if start < num_steps:
                print(f"{label}: going on from step {start} of {num_steps}", flush=True)
        batches.seek(start)
        end = num_steps if stop_after is None else min(stop_after, num_steps)
        metrics_file = MetricsFile(folder / "metrics.jsonl", resume_step=start, tensorboard=loop.tensorboard)
        progress = Progress(label, num_steps, per_step=batch_size)
        pending, waited, since_save = [], 0.0, []
        trace = _Trace(loop.profile, folder / "profile")
        begun = time.monotonic()
        if start == 0 and 0 in visits:
            visits[0](state)
        with stopping.training():
            for index in range(start, end):
                trace.before(index + 1, state)
                asked = time.monotonic()
                batch = shard_batch(next(batches), mesh)
                # Steps are computed behind the loop's back: it waited for images only if the last one is done by now.
                if not pending or pending[-1]["loss"].is_ready():
                    waited += time.monotonic() - asked
                state, metrics = step(state, batch, index)
                pending.append(metrics)
                done = index + 1
                if done in visits:  # before the checkpoint: what is saved has been visited
                    visits[done](state)
                stopped = stopping.requested()
                saving = done % loop.save_every == 0 or done == end or stopped
                if done == start + 1 or done % loop.log_every == 0 or saving:
                    rows, pending = jax.device_get(pending), []
                    means = {k: float(np.mean([row[k] for row in rows])) for k in metrics}
                    if not np.isfinite(means["loss"]):
                        raise UserError(
                            f"{label}: the loss is {means['loss']} between steps {done - len(rows)} and {done}; "
                            "the last good checkpoint is kept. Lower the learning rate, lengthen the warm-up, or look at the data"
                        )
                    since_save += [row["loss"] for row in rows]
                    rate = progress.update(done, f"loss {means['loss']:.4f}")
                    now = time.monotonic()
                    row = means | _speed(rate, flops_per_image) | {"input_wait": waited / max(now - begun, 1e-9)} | memory()
                    metrics_file.write(done, row)
                    waited, begun = 0.0, now
                if saving and not bool(_finite(state)):
                    raise UserError(
                        f"{label}: the parameters are not finite after step {done}, though the loss still was; the last good "
                        "checkpoint is kept. Lower the learning rate, lengthen the warm-up, or look at the data"
                    )
                if saving:
                    checkpoints.save(done, state, float(np.mean(since_save)))
                    since_save = []
                if stopped:
                    trace.stop(state)
                    raise stopping.Stopped(f"{label}: stopped at step {done} of {num_steps}, saved")
        trace.stop(state)
        metrics_file.close()
    return state


@jax.jit
def _finite(state):
    """Whether every number of a training state is finite."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers])) if numbers else jnp.array(True)


def _speed(rate, flops_per_image) -> dict:
    if not rate:
        return {}
    flops = {who: rate * count for who, count in (flops_per_image or {}).items()}
    found = {"images_per_second": rate} | {f"{who}_tflops": count / 1e12 for who, count in flops.items()}
    if flops and (peak := peak_flops()):
        found["mfu"] = sum(flops.values()) / peak
    return found


class _Trace:
    """jax's profiler over a window of steps, counted from 1; None for no window."""

    def __init__(self, window: tuple[int, int] | None, folder):
        self.window, self.folder, self.running = window, folder, False

    def before(self, step: int, state) -> None:
        """Starts or stops where `step` is about to be done."""
        if self.window and not self.running and self.window[0] <= step <= self.window[1]:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.running and step > self.window[1]:
            self.stop(state)

    def stop(self, state) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.running = False
            print(f"profile of steps {self.window[0]} to {self.window[1]}: {self.folder}", flush=True)


def accumulate(grad_fn: Callable, batch, pieces: int):
    """Mean gradients and metrics over a batch that goes through in `pieces`, one after the other.

    Args:
        grad_fn: batch -> (gradients, metrics), both means over the images of the batch.
        batch: a pytree of arrays with a leading batch axis that `pieces` divides. Each piece takes every `pieces`-th image, so
            that every device has its share of each.
    """
    if pieces == 1:
        return grad_fn(batch)
    split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(grad_fn, jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def add(total, piece):
        return jax.tree.map(lambda a, b: a + b / pieces, total, grad_fn(piece)), None

    return jax.lax.scan(add, zeros, split)[0]


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
