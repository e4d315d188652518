"""Published linear classifiers: Meta's DINOv2 heads, `weight` [classes, 2 dim] and `bias` [classes], on [cls, mean patch]."""

import jax.numpy as jnp
import numpy as np

from brh_jax.errors import UserError
from weights_convert.sources import open_source
from weights_convert.tensors import floats


def read_linear_head(spec: str, num_features: int, num_classes: int) -> dict:
    """A classifier to start a probe from.

    Args:
        spec: a .pth or .safetensors file.
        num_features: of the encoder, 2 dim for [cls, mean patch].
        num_classes: of the data set.

    Returns:
        {"kernel": [num_features, num_classes], "bias": [num_classes]}.

    Raises:
        UserError: not a linear head, or one of another size.
    """
    source = open_source(spec)
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
