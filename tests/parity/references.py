"""Randomly initialised reference models of transformers, saved as checkpoints, with their hidden states."""

import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
MODELS = {
    "dinov2": (transformers.Dinov2Model, transformers.Dinov2Config, {"patch_size": 14, "image_size": 518}),
    "dinov2-swiglu": (
        transformers.Dinov2Model,
        transformers.Dinov2Config,
        {"patch_size": 14, "image_size": 518, "use_swiglu_ffn": True},
    ),
    "dinov2-registers": (
        transformers.Dinov2WithRegistersModel,
        transformers.Dinov2WithRegistersConfig,
        {"patch_size": 14, "image_size": 518, "num_register_tokens": 4},
    ),
    "dinov2-classifier": (
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config,
        {"patch_size": 14, "image_size": 518, "num_labels": 7},
    ),
    "vit": (transformers.ViTModel, transformers.ViTConfig, {"patch_size": 16, "image_size": 224, "intermediate_size": 192}),
    "vit-classifier": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig,
        {"patch_size": 16, "image_size": 224, "intermediate_size": 192, "num_labels": 7},
    ),
    "deit": (transformers.DeiTModel, transformers.DeiTConfig, {"patch_size": 16, "image_size": 224, "intermediate_size": 192}),
}


def make(name: str, folder: pathlib.Path, dtype=torch.float32, **changes):
    """The reference model, saved in `folder` as the hub would hold it. Every parameter is drawn, biases and gains too."""
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**SMALL | options | changes)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "lambda1", "before.weight", "after.weight")):
                parameter.normal_(1.0, 0.1)
            else:
                # Tokens and positions large enough to show, matrices so that branches are of the size of the stream.
                parameter.normal_(0.0, 0.02 if "patch" in key else 0.3 if "embeddings" in key else 0.08)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def hidden_states(model, images: np.ndarray) -> list[np.ndarray]:
    """a_0 ... a_L of float images `[batch, height, width, 3]`."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2)
    # Off the table's grid ViT and DeiT resample only when asked to.
    options = {"interpolate_pos_encoding": True} if "Dinov2" not in type(model).__name__ else {}
    with torch.no_grad():
        return [s.numpy() for s in model(pixels, output_hidden_states=True, **options).hidden_states]


def tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rewrite(folder: pathlib.Path, new: dict[str, torch.Tensor]) -> pathlib.Path:
    """Replaces the weights in `folder`."""
    save_file({k: v.contiguous() for k, v in new.items()}, folder / "model.safetensors")
    return folder


def as_torch_hub(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A DINOv2 of transformers under the names of facebookresearch/dinov2: fused qkv, `blocks.N`, `ls1.gamma`."""
    out = {}
    old = "encoder.layer."
    plain = [
        ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
        ("mlp.weights_in", "mlp.w12"),
        ("mlp.weights_out", "mlp.w3"),
    ]
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    for name, tensor in state.items():
        if ".attention.attention." in name:
            prefix, _, kind = name.partition(".attention.attention.")
            if not kind.startswith("query"):
                continue
            parts = [state[f"{prefix}.attention.attention.{p}.{kind.split('.')[1]}"] for p in ("query", "key", "value")]
            out[f"{prefix.replace(old, 'blocks.')}.attn.qkv.{kind.split('.')[1]}"] = torch.cat(parts)
        elif name in names:
            out[names[name]] = tensor
        else:
            new = name.replace(old, "blocks.")
            for a, b in plain:
                new = new.replace(a, b)
            out[new] = tensor
    return out


def edit_config(folder: pathlib.Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
