"""brh_jax.load: an Encoder from anything that holds one."""

import os
import pathlib
from collections.abc import Sequence

from jax.typing import DTypeLike

from brh_jax.errors import UserError
from brh_jax.models import store
from brh_jax.models.encoder import Encoder
from brh_jax.partition import Partition
from brh_jax.types import PathLike, Size


def load(
    path: PathLike,
    *,
    image_size: Size | None = None,
    k: int | None = None,
    dtype: DTypeLike | None = None,
    partition: Partition | Sequence[int] | None = None,
    num_heads: int | None = None,
    teacher: Encoder | PathLike | None = None,
) -> Encoder:
    """Loads a ViT or a Raptor.

    Args:
        path: `hf:organisation/model`; a .safetensors, .pth or .onnx file or a folder in the hub's layout, converted on first
            use and kept in a cache (see `weights_convert.cache`); a folder written by `python -m weights_convert`; a run's work
            directory, which gives its Raptor (the one with most phases, or with `k`); or a stage of one, `workdir/teacher`
            giving the teacher.
        image_size: int or (height, width) that it will be used at; its own by default.
        k: which Raptor of a work directory.
        dtype: precision of the matrix products, for example `jnp.bfloat16`.
        partition: of a Raptor's bare state dict: number of layers of each phase, (7, 3, 2).
        num_heads: attention heads, where the weights cannot tell: bare state dicts of unusual width.
        teacher: of a Raptor's bare state dict, the ViT that it was distilled from: an Encoder, or anything `load` takes.
            Without it `system()` and `rollout(state)` work, `trajectory(images)` does not.

    Raises:
        UserError: nothing readable there, or no such Raptor.
    """
    encoder = _load(path, k, partition, num_heads)
    if teacher is not None:
        from weights_convert.raptor import with_teacher  # as below

        if "embedding" in encoder.params:
            raise UserError(f"{path} needs no teacher: only a Raptor's bare state dict does")
        encoder = with_teacher(encoder, teacher if isinstance(teacher, Encoder) else load(teacher))
    if image_size is not None:
        encoder = encoder.at_size(image_size)
    return encoder if dtype is None else encoder.replace(dtype=dtype)


def _load(path, k, partition, num_heads) -> Encoder:
    folder = pathlib.Path(os.path.expanduser(path))
    if store.is_encoder_folder(folder):
        return store.read(folder)
    if (folder / "distill").is_dir() or (folder / "teacher").is_dir():
        return _from_workdir(folder, k)
    if store.is_encoder_folder(folder / "model"):
        return store.read(folder / "model")
    # The one way back: weights_convert imports brh_jax, and only `load` knows of it, once there is something to convert.
    from weights_convert.cache import converted

    if partition is not None and not isinstance(partition, Partition):
        partition = Partition(tuple(partition))
    options = {"num_heads": num_heads, "partition": partition}
    return converted(str(path), **{key: value for key, value in options.items() if value is not None})


def _from_workdir(workdir, k) -> Encoder:
    raptors = workdir.glob("distill/k*/raptor")
    found = {int(p.parent.name[1:]): p for p in sorted(raptors) if p.parent.name[1:].isdecimal()}
    if k is None and found:
        return store.read(found[max(found)])
    if k in found:
        return store.read(found[k])
    there = f"there are k = {', '.join(map(str, sorted(found)))}" if found else "it holds no finished Raptor yet"
    wanted = "" if k is None else f" with k = {k}"
    raise UserError(f"{workdir} has no Raptor{wanted}: {there}; load({str(workdir / 'teacher')!r}) gives the teacher")
