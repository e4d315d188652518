"""The one training loop: resumable, with metrics and a progress line; what a step does is the caller's."""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from brh_jax.errors import UserError, expect, expect_not_negative, expect_positive
from brh_jax.train import stopping
from brh_jax.train.checkpoints import Checkpoints
from brh_jax.train.hardware import memory, peak_flops
from brh_jax.train.metrics import MetricsFile, Progress
from brh_jax.train.parallel import agree, is_main, shard, shard_batch


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How a loop runs, without effect on what comes out.

    Attributes:
        log_every: steps between rows of metrics.
        save_every: steps between checkpoints.
        keep_last: checkpoints that are kept, the last ones.
        keep_best: and those of the lowest training loss since the one before.
        tensorboard: whether metrics go to TensorBoard too, beside metrics.jsonl.
        profile: (first, last) step to trace with jax's profiler into `profile/`, or None.
    """

    log_every: int = 50
    save_every: int = 5000
    keep_last: int = 2
    keep_best: int = 1
    tensorboard: bool = False
    profile: tuple[int, int] | None = None

    def __post_init__(self):
        expect_positive(self, "log_every", "save_every", "keep_last")
        expect(self.keep_best >= 0, "keep_best", self.keep_best, "0 or more")


@dataclasses.dataclass(frozen=True)
class Run:
    """A training: where it is kept, whose it is, and how it goes.

    Attributes:
        folder: gets `checkpoints/`, `metrics.jsonl` and what `loop` asks for.
        identity: what a checkpoint belongs to, as JSON; one with another identity is refused.
        mesh: the devices.
        label: what runs, for people.
        loop: how the loop runs.
        stop_after: stop at this step, checkpoint saved, as a run that was killed would (for tests).
    """

    folder: pathlib.Path
    identity: dict[str, Any]
    mesh: Mesh
    label: str
    loop: LoopSettings = LoopSettings()
    stop_after: int | None = None


def train(
    step: Callable,
    state: Any,
    batches: Any,
    run: Run,
    *,
    num_steps: int,
    batch_size: int,
    specs: Any = None,
    flops_per_image: dict[str, float] | None = None,
    visits: dict[int, Callable] | None = None,
) -> Any:
    """Runs `state, metrics = step(state, batch, index)` until `num_steps`, going on from the newest checkpoint if there is one.

    Args:
        step: jitted, its first argument donated; metrics is a flat dictionary of scalars with a `loss`.
        state: what is trained, a pytree.
        batches: an iterator with `seek(step)`.
        batch_size: of all processes together.
        specs: how the state's arrays are split over the mesh, see `parallel.shard`; None for whole on every device.
        flops_per_image: of a step, by who spends them ("teacher", "student"), where that is known.
        visits: number of steps done -> function called with the state then, off the clock; 0 is the start. A run that goes on
            from a checkpoint before such a step calls it again, with the same state.

    Returns:
        The state after the last step.

    Raises:
        UserError: the loss is not finite; the last good checkpoint stays.
        Stopped: the run was told to stop; the state is saved.
    """
    state, visits, loop = shard(state, run.mesh, specs), visits or {}, run.loop
    kept = {"keep_last": loop.keep_last, "keep_best": loop.keep_best}
    with Checkpoints(run.folder / "checkpoints", run.identity, **kept) as checkpoints:
        start, state = checkpoints.restore(state) or (0, state)
        if 0 < start < num_steps:
            print(f"{run.label}: going on from step {start} of {num_steps}", flush=True)
        batches.seek(start)
        end = num_steps if run.stop_after is None else min(run.stop_after, num_steps)
        metrics, trace = (
            _Metrics(run, start, num_steps, batch_size, flops_per_image),
            _Trace(loop.profile, run.folder / "profile"),
        )
        if start == 0 and 0 in visits:
            visits[0](state)
        with stopping.training():
            for index in range(start, end):
                trace.before(index + 1, state)
                batch = metrics.wait(lambda: shard_batch(next(batches), run.mesh))
                with jax.numpy_dtype_promotion("standard"):  # optax knows no other
                    state, values = step(state, batch, index)
                done = index + 1
                if done in visits:  # before the checkpoint: what is saved has been visited
                    metrics.aside(visits[done], state)
                stopped = stopping.requested()
                saving = done % loop.save_every == 0 or done == end or stopped
                metrics.add(values)
                if done == start + 1 or done % loop.log_every == 0 or saving:
                    metrics.write(done)
                if saving:
                    _check_there(run)
                    _check_finite(state, run.label, done)
                    checkpoints.save(done, state, metrics.loss_since_save())
                if stopped:
                    trace.stop(state)
                    raise stopping.Stopped(f"{run.label}: stopped at step {done} of {num_steps}, saved")
        trace.stop(state)
        metrics.close()
    return state


class _Metrics:
    """What a loop tells of itself: metrics of steps are fetched together, since fetching one waits for it."""

    def __init__(self, run: Run, start: int, num_steps: int, batch_size: int, flops_per_image: dict[str, float] | None):
        self._label, self._flops = run.label, flops_per_image or {}
        self._file = MetricsFile(run.folder / "metrics.jsonl", resume_step=start, tensorboard=run.loop.tensorboard)
        self._progress = Progress(run.label, num_steps, per_step=batch_size)
        self._pending: list[dict] = []
        self._since_save: list[float] = []
        self._waited, self._begun = 0.0, time.monotonic()

    def wait(self, get: Callable):
        """What `get` gives, on the clock."""
        asked = time.monotonic()
        batch = get()
        # Steps are computed behind the loop's back: it waited for images only if the last one is done by now.
        if not self._pending or self._pending[-1]["loss"].is_ready():
            self._waited += time.monotonic() - asked
        return batch

    def aside(self, visit: Callable, state: Any) -> None:
        """Visits a state off the clock."""
        jax.block_until_ready(state)
        begun = time.monotonic()
        with self._progress.aside():
            visit(state)
        self._begun += time.monotonic() - begun

    def add(self, values: dict) -> None:
        """Takes note of a step."""
        self._pending.append(values)

    def write(self, done: int) -> None:
        """A row of means since the last one. Raises UserError if the loss is not finite."""
        rows, self._pending = jax.device_get(self._pending), []
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if not np.isfinite(means["loss"]):
            raise UserError(
                f"{self._label}: the loss is {means['loss']} between steps {done - len(rows)} and {done}; the last good "
                "checkpoint is kept. Lower the learning rate, lengthen the warm-up, or look at the data"
            )
        self._since_save += [row["loss"] for row in rows]
        rate = self._progress.update(done, f"loss {means['loss']:.4f}")
        now = time.monotonic()
        waited = {"input_wait": self._waited / max(now - self._begun, 1e-9)}
        self._file.write(done, means | _speed(rate, self._flops) | waited | memory())
        self._waited, self._begun = 0.0, now

    def loss_since_save(self) -> float:
        """Mean training loss since this was last asked for."""
        losses, self._since_save = self._since_save, []
        return float(np.mean(losses))

    def close(self) -> None:
        """Ends the file."""
        self._file.close()


def _check_there(run: Run) -> None:
    """The file that grows: a folder of checkpoints is made anew by whoever was saving one."""
    if agree(is_main() and not (run.folder / "metrics.jsonl").exists()):
        raise UserError(f"{run.label}: {run.folder} was removed while the training wrote to it; what was in it is lost")


def _check_finite(state: Any, label: str, done: int) -> None:
    if not bool(_finite(state)):
        raise UserError(
            f"{label}: the parameters are not finite after step {done}, though the loss still was; the last good checkpoint is "
            "kept. Lower the learning rate, lengthen the warm-up, or look at the data"
        )


@jax.jit
def _finite(state: Any) -> jax.Array:
    """Whether every number of a training state is finite."""
    numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers])) if numbers else jnp.array(True)


def _speed(rate: float | None, flops_per_image: dict[str, float]) -> dict:
    if not rate:
        return {}
    flops = {who: rate * count for who, count in flops_per_image.items()}
    found = {"images_per_second": rate} | {f"{who}_tflops": count / 1e12 for who, count in flops.items()}
    if flops and (peak := peak_flops()):
        found["mfu"] = sum(flops.values()) / peak
    return found


class _Trace:
    """jax's profiler over a window of steps, counted from 1; None for no window."""

    def __init__(self, window: tuple[int, int] | None, folder: pathlib.Path):
        self.first, self.last = window or (0, -1)
        self.folder, self.running = folder, False

    def before(self, step: int, state: Any) -> None:
        """Starts or stops where `step` is about to be done."""
        if not self.running and self.first <= step <= self.last:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        elif self.running and step > self.last:
            self.stop(state)

    def stop(self, state: Any) -> None:
        """Ends a trace that runs."""
        if self.running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self.running = False
            print(f"profile of steps {self.first} to {self.last}: {self.folder}", flush=True)


def accumulate(grad_fn: Callable, batch: Any, pieces: int) -> Any:
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


@dataclasses.dataclass(frozen=True)
class AdamwSettings:
    """How something is optimised: AdamW behind a clipped gradient, its learning rate rising linearly and falling by a cosine.

    Attributes:
        learning_rate: the largest.
        final_learning_rate: what it falls to.
        warmup_steps: steps over which it rises from zero.
        weight_decay: share of the parameters, times the learning rate, that is taken off in a step.
        clip_norm: largest norm of a gradient.
    """

    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-6
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    def __post_init__(self):
        expect_positive(self, "learning_rate", "clip_norm")
        expect_not_negative(self, "final_learning_rate", "warmup_steps", "weight_decay")


def adamw(settings: AdamwSettings, num_steps: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Gives AdamW and the schedule of its learning rate (paper, sections 4 and 9)."""
    peak, last = settings.learning_rate, settings.final_learning_rate
    warmup_steps = min(settings.warmup_steps, num_steps - 1)
    start = 0.0 if warmup_steps else peak
    schedule = optax.warmup_cosine_decay_schedule(start, peak, warmup_steps, num_steps, last)
    return optax.adamw(schedule, weight_decay=settings.weight_decay), schedule
