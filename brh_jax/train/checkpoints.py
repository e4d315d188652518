"""Training state on disk, through orbax: saved in the background, whole or not at all, and checked when it is read."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from brh_jax.errors import UserError
from brh_jax.train.parallel import agree, is_main, wait_for_all

LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Checkpoints:
    """The checkpoints of one training run, in one folder: the last ones and, where a loss is given, the best.

    A checkpoint can be restored onto any mesh and by any number of processes. Each holds a fingerprint of every array, so that a
    damaged one is noticed, and then passed over for the one before.

    Args:
        folder: made if it is not there.
        identity: what the state belongs to, as JSON (configuration, partition); a checkpoint with another is refused.
        keep_last, keep_best: how many are kept.
    """

    def __init__(self, folder: str | os.PathLike, identity: dict, *, keep_last: int = 2, keep_best: int = 1):
        self.folder = pathlib.Path(folder).absolute()
        self.identity = identity
        managing = ocp.checkpoint_managers
        policies = [managing.LatestN(keep_last)]
        if keep_best:
            policies.append(managing.BestN(get_metric_fn=_negative_loss, n=keep_best))
        options = ocp.CheckpointManagerOptions(
            create=True,
            enable_async_checkpointing=True,
            preservation_policy=managing.AnyPreservationPolicy(policies),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def save(self, step: int, state: Any, loss: float | None = None) -> None:
        """Saves the state after `step` steps; returns before it is written."""
        about = {
            "identity": self.identity,
            "step": step,
            "loss": loss,
            "fingerprints": fingerprints(state),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        }
        about["sha256"] = _digest(about)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about))
        self._manager.save(step, args=items, metrics={"loss": float("inf") if loss is None else loss})

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that is whole, laid out as `like` is, or None: (step, state).

        Damaged ones are set aside, aloud.

        Raises:
            UserError: it belongs to another configuration, or does not fit; all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            state, damage = self._read(step, like)
            if damage is None:
                return step, state
            print(f"warning: checkpoint {self.folder / str(step)} is damaged ({damage}) and set aside", flush=True)
            self._set_aside(step)
        if steps:
            raise UserError(
                f"every checkpoint in {self.folder} was damaged: look at the disk; the same call now starts the training again"
            )
        return None

    def steps(self) -> list[int]:
        """Steps that there are checkpoints of."""
        return sorted(self._manager.all_steps())

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _read(self, step: int, like):
        """(state, None), or (None, what is wrong); every process comes to the same."""
        about, damage, refusal = self._describe(step, like)
        if agree(refusal is not None):
            raise refusal or UserError("another process of this run cannot use its checkpoints: see what the first one says")
        if agree(damage is not None):
            return None, damage or "another process could not read it"
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        state = None
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
                raise
            damage = _first_line(error)
        if agree(damage is not None):
            return None, damage or "another process could not read it"
        read = fingerprints(state)
        if read != about["fingerprints"]:
            wrong = next(path for path in read if read[path] != about["fingerprints"].get(path))
            return None, f"{wrong} is not what was written"
        return state, None

    def _describe(self, step: int, like):
        """(description, what is damaged, what this run cannot use)."""
        try:
            about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
            whole = about is not None and about.get("sha256") == _digest(about)
        except Exception as error:  # orbax, tensorstore and json each have their own for a file that is not what it was
            return None, _first_line(error), None
        if not whole:
            return None, "its description is not what was written", None
        if about["identity"] != self.identity:
            refusal = UserError(
                f"the checkpoint in {self.folder} was made with {about['identity']}, this run has {self.identity}: "
                "use another folder, or remove that one to start again"
            )
            return about, None, refusal
        shapes = {path: list(leaf.shape) for path, leaf in _by_path(like).items()}
        there = {path: entry["shape"] for path, entry in about["fingerprints"].items()}
        if shapes != there:
            wrong = [path for path in shapes | there if shapes.get(path) != there.get(path)]
            refusal = UserError(
                f"the checkpoint {self.folder / str(step)} does not fit: {wrong[0]} has shape {there.get(wrong[0])} there and "
                f"{shapes.get(wrong[0])} here; remove that folder to start again"
            )
            return about, None, refusal
        return about, None, None

    def _set_aside(self, step: int) -> None:
        """Nothing is deleted: the disk may be at fault, and not the checkpoint."""
        wait_for_all("a damaged checkpoint has been read")
        if is_main():
            aside = self.folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / str(step), aside)
        wait_for_all("a damaged checkpoint is out of the way")
        self._manager.reload()


def fingerprints(tree: Any) -> dict[str, dict]:
    """Shape, type and a 32-bit number of every array, the same for any layout over devices; any flipped bit changes it.

    The number is the sum of the array's 32-bit words, each times an odd number that belongs to its place, modulo 2^32.
    """
    leaves = _by_path(tree)
    numbers = jax.device_get(_numbers(leaves))
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "number": int(numbers[path])} for path, leaf in leaves.items()
    }


@jax.jit
def _numbers(leaves):
    return {path: _number(leaf) for path, leaf in leaves.items()}


def _number(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    size = leaf.dtype.itemsize
    if leaf.dtype == jnp.bool_:
        words = leaf.astype(jnp.uint32)
    else:
        unsigned = jax.lax.bitcast_convert_type(leaf, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[size])
        words = unsigned.astype(jnp.uint32)
    places = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        places = places * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * places + 1), dtype=jnp.uint32)


def _by_path(tree) -> dict:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _digest(about: dict) -> str:
    rest = {key: value for key, value in about.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _negative_loss(metrics) -> float:
    return -metrics["loss"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
