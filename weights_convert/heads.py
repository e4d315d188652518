"""Published linear classifiers: Meta's DINOv2 heads, `weight` [classes, 2 dim] and `bias` [classes], on [cls, mean patch]."""

import os
import pathlib
import re

import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from brh_jax.files import cache_folder
from weights_convert.sources import open_source
from weights_convert.tensors import floats


def published_head(arch: str) -> str:
    """The file name of Meta's ImageNet-1k head on the last layer of a DINOv2 by its short name, `vitb14_reg` say."""
    return f"dinov2_{arch.replace('_reg', '_reg4')}_linear_head.pth"


def find_linear_head(spec: str) -> str:
    """The path of a classifier: the file of that name, or one of Meta's by its name alone, where downloads of it lie.

    Raises:
        UserError: no such file; of one of Meta's the message says where it is to be had, and where to put it.
    """
    if pathlib.Path(spec).expanduser().exists():
        return spec
    meta = re.fullmatch(r"(dinov2_vit[sblg]14)(?:_reg4)?_linear_head\.pth", spec)
    if meta is None:
        raise UserError(
            f"no classifier at {spec}: expected a .pth or .safetensors file, or the name of one of Meta's, such as "
            f"{published_head('vitb14_reg')}"
        )
    torch = pathlib.Path(os.environ.get("TORCH_HOME") or pathlib.Path.home() / ".cache" / "torch").expanduser()
    own = cache_folder() / "heads"
    for folder in (own, torch / "hub" / "checkpoints"):
        if (folder / spec).is_file():
            return str(folder / spec)
    raise UserError(
        f"no file {spec}, Meta's classifier: download https://dl.fbaipublicfiles.com/dinov2/{meta[1]}/{spec} into {own}, or "
        "anywhere and give its path as head; or give no head, to start from zeros (a probe of another kind than the paper's)"
    )


def read_linear_head(spec: str, num_features: int, num_classes: int) -> dict:
    """A classifier to start a probe from.

    Args:
        spec: as of `find_linear_head`.
        num_features: of the encoder, 2 dim for [cls, mean patch].
        num_classes: of the data set.

    Returns:
        {"kernel": [num_features, num_classes], "bias": [num_classes]}.

    Raises:
        UserError: not a linear head, or one of another size.
    """
    source = open_source(find_linear_head(spec))
    found: dict[str, list] = {}
    for name, tensor in source.tensors.items():
        found.setdefault(name.rpartition(".")[2], []).append((name, tensor))
    if set(found) != {"weight", "bias"} or any(len(tensors) != 1 for tensors in found.values()):
        raise UserError(
            f"{spec} is no linear classifier: expected one weight and one bias, got {', '.join(list(source.tensors)[:6])}"
        )
    (weight_name, weight), (bias_name, bias) = found["weight"][0], found["bias"][0]
    if weight.shape != (num_classes, num_features) or bias.shape != (num_classes,):
        hint = ""
        if len(weight.shape) == 2 and weight.shape[1] % num_features and not (2 * weight.shape[1]) % (5 * num_features):
            hint = " (a head on four layers: take the one on the last layer, *_linear_head.pth)"
        raise UserError(
            f"{spec} has weight {weight.shape} and bias {bias.shape}, expected ({num_classes}, {num_features}) and "
            f"({num_classes},), classes by features of this encoder{hint}"
        )
    arrays = {}
    for name, tensor in ((weight_name, weight), (bias_name, bias)):
        arrays[name], fault = floats(tensor, np.float32)
        if fault:
            raise UserError(f"{spec}: {name} {fault.what}: download it again")
    return {"kernel": jnp.asarray(arrays[weight_name].T), "bias": jnp.asarray(arrays[bias_name])}
