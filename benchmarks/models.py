"""The models that benchmarks run: of published shape, with random weights, ours and the same in PyTorch."""

import argparse
import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import brh_jax
from benchmarks import measure
from brh_jax.models import Encoder, ViT, ViTConfig, architecture
from brh_jax.models.encoder import init_params
from brh_jax.preprocessing import Preprocessing
from brh_jax.types import Array

TINY = ViTConfig(
    dim=48, depth=3, num_heads=4, mlp_dim=192, patch_size=14, position_grid=(2, 2), layer_scale=True, num_registers=2,
    position_resampling="cubic-antialias",
)  # fmt: skip


def config_of(arch: str, tiny: bool = False) -> ViTConfig:
    """A published architecture by its name, or a tiny one."""
    return TINY if tiny else architecture(arch).config


def random_vit(arch: str, size: int, *, tiny: bool = False, dtype: str = "float32") -> Encoder:
    """A ViT with random weights at `size` pixels; every branch is of the size of the stream, so that errors would show."""
    config = config_of(arch, tiny)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(init_params, ViT(config)), jax.random.key(0), image)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if name.endswith("['scale']"):
            return np.float32(1) + rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        fan_in = max(config.dim, leaf.shape[-2]) if "kernel" in name else 2500
        return rng.normal(0, fan_in**-0.5, leaf.shape).astype(np.float32)

    params = jax.device_put(jax.tree_util.tree_map_with_path(draw, shapes))
    name = f"{'a tiny ViT' if tiny else arch} with random weights"
    return Encoder(config, params, Preprocessing((size, size)), name=name, dtype=None if dtype == "float32" else jnp.dtype(dtype))


def random_pixels(number: int, size: int) -> np.ndarray:
    """uint8 images."""
    return np.random.default_rng(1).integers(0, 256, (number, size, size, 3), dtype=np.uint8)


def add_options(parser: argparse.ArgumentParser) -> None:
    """--weights, --arch and --size, of benchmarks whose results depend on the weights; images are random pixels."""
    parser.add_argument("--weights", default="", help="anything that brh_jax.load takes; random weights of --arch without")
    parser.add_argument("--arch", default="vits14", help="a name of brh_jax.models.ARCHITECTURES, where there are no --weights")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")


def from_options(arguments: argparse.Namespace) -> Encoder:
    """The encoder that `add_options` asks for."""
    if arguments.tiny:
        arguments.size = 28
    if arguments.weights and not arguments.tiny:
        return brh_jax.load(arguments.weights).at_size(arguments.size)
    return random_vit(arguments.arch, arguments.size, tiny=arguments.tiny)


def in_transformers(encoder: Encoder, dtype: str = "float32", *, device: str = "") -> Any:
    """The same ViT as a model of transformers, on torch's device or another.

    Raises:
        measure.Skipped: torch or transformers is missing.
    """
    torch = measure.load_torch("transformers", device=device)
    import transformers

    from weights_convert import export

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        path = export.write(encoder.replace(dtype=None, head=None), f"{folder}/model")
        model = transformers.AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()
    return model.requires_grad_(False).to(device or measure.torch_device(), getattr(torch, dtype))


def as_torch_images(images: Array, dtype: str = "float32", *, device: str = "") -> Any:
    """Preprocessed images as torch's models take them, `[batch, 3, height, width]`."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1)))
    return pixels.to(device or measure.torch_device(), getattr(torch, dtype))


def states_in_torch(model: Any, pixels: Any) -> Any:
    """a_0 ... a_L of a model of transformers, a list of `[batch, tokens, dim]`."""
    return model(pixels, output_hidden_states=True).hidden_states


def to_numpy(states: Any) -> np.ndarray:
    """States of torch, `[depth + 1, batch, tokens, dim]` float32."""
    return np.stack([state.detach().float().cpu().numpy() for state in states])
