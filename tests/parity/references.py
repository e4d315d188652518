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
    "mae": (transformers.ViTMAEModel, transformers.ViTMAEConfig, {"intermediate_size": 192, "mask_ratio": 0.0}),
    "mae-with-decoder": (
        transformers.ViTMAEForPreTraining,
        transformers.ViTMAEConfig,
        {"intermediate_size": 192, "mask_ratio": 0.0, "decoder_hidden_size": 48, "decoder_num_attention_heads": 4},
    ),
    "dinov3": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig,
        {"intermediate_size": 192, "num_register_tokens": 4},
    ),
    "dinov3-gated": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig,
        {"intermediate_size": 128, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "key_bias": True},
    ),
    "dinov3-few-biases": (
        transformers.DINOv3ViTModel,
        transformers.DINOv3ViTConfig,
        {"intermediate_size": 192, "query_bias": False, "value_bias": False, "mlp_bias": False, "rope_theta": 50.0},
    ),
    "clip": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {"intermediate_size": 192}),
    "clip-gelu": (transformers.CLIPVisionModel, transformers.CLIPVisionConfig, {"intermediate_size": 192, "hidden_act": "gelu"}),
    "clip-with-text": (
        transformers.CLIPModel,
        transformers.CLIPConfig,
        {"vision_config": SMALL | {"intermediate_size": 192}, "text_config": SMALL | {"intermediate_size": 96}},
    ),
    "siglip": (transformers.SiglipVisionModel, transformers.SiglipVisionConfig, {"intermediate_size": 192}),
    "siglip-with-text": (
        transformers.SiglipModel,
        transformers.SiglipConfig,
        {"vision_config": SMALL | {"intermediate_size": 192}, "text_config": SMALL | {"intermediate_size": 96}},
    ),
    "siglip2": (transformers.Siglip2VisionModel, transformers.Siglip2VisionConfig, {"intermediate_size": 192}),
}


def make(name: str, folder: pathlib.Path, dtype=torch.float32, **changes):
    """The reference model, saved in `folder` as the hub would hold it. Every parameter is drawn, biases and gains too."""
    model_class, config_class, options = MODELS[name]
    torch.manual_seed(0)
    small = {} if "vision_config" in options else SMALL
    model = model_class(config_class(**small | options | changes)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("lambda1") or ("norm" in key and key.endswith("weight")):
                parameter.normal_(1.0, 0.1)
            elif parameter.requires_grad or "position" in key:  # MAE's table is fixed
                # Tokens and positions large enough to show, matrices so that branches are of the size of the stream.
                parameter.normal_(0.0, 0.02 if "patch" in key else 0.3 if "embeddings" in key else 0.08)
    model = model.to(dtype)
    model.save_pretrained(folder)
    return model


def hidden_states(model, images: np.ndarray) -> list[np.ndarray]:
    """a_0 ... a_L of float images `[batch, height, width, 3]`."""
    return [s.numpy() for s in run(model, images).hidden_states]


def run(model, images: np.ndarray):
    """The reference's outputs for float images `[batch, height, width, 3]`."""
    name, pixels = type(model).__name__, torch.tensor(images).permute(0, 3, 1, 2)
    model = next((getattr(model, part) for part in ("vision_model", "vit", "dinov2") if hasattr(model, part)), model)
    patch = model.config.patch_size
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    # Off the table's grid most resample only when asked to.
    options = {} if name.startswith("D") and "DeiT" not in name else {"interpolate_pos_encoding": True}
    if "MAE" in name:
        options["noise"] = torch.arange(float(rows * columns)).expand(len(images), -1)  # masks nothing, keeps the order
    if "Siglip2" in name:
        pixels = pixels.permute(0, 2, 3, 1).reshape(len(images), rows, patch, columns, patch, 3).transpose(2, 3)
        pixels = pixels.reshape(len(images), rows * columns, -1)
        mask = torch.ones(pixels.shape[:2], dtype=torch.int32)
        options = {"pixel_attention_mask": mask, "spatial_shapes": torch.tensor([[rows, columns]] * len(images))}
    with torch.no_grad():
        return model(pixels, output_hidden_states=True, **options)


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


def as_blocks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A ViT or a DeiT of transformers under the names of timm, DINO, DeiT and MAE: fused qkv, `blocks.N`."""
    out = {}
    for name, tensor in state.items():
        if name.startswith("pooler"):
            continue
        new = name.replace("encoder.layer.", "blocks.").replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        new = new.replace("attention.output.dense", "attn.proj").replace("intermediate.dense", "mlp.fc1")
        new = new.replace("output.dense", "mlp.fc2").replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        new = new.replace("embeddings.position_embeddings", "pos_embed").replace("embeddings.cls_token", "cls_token")
        new = new.replace("layernorm.", "norm.").replace("classifier", "head")
        if ".attention.attention.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            out[new.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
        elif ".attention.attention." not in name:
            out[new] = tensor
    return out


def as_dinov3_hub(state: dict[str, torch.Tensor], head_dim: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """A DINOv3 of transformers under the names of facebookresearch/dinov3, with the periods and the mask it keeps."""
    out = {"rope_embed.periods": (100.0 ** torch.arange(0, 1, 4 / head_dim)).to(dtype)}
    names = {
        "layer.": "blocks.",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "embeddings.patch_embeddings": "patch_embed.proj",
        "embeddings.register_tokens": "storage_tokens",
        "embeddings.": "",
    }
    gated = any("gate_proj" in name for name in state)
    names |= {"mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"} if gated else {}
    names |= {} if gated else {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"}
    for name, tensor in state.items():
        new = name
        for a, b in names.items():
            new = new.replace(a, b)
        if ".attention.q_proj.weight" in name:
            block = new.partition(".attention")[0]
            q, k, v = (name.replace("q_proj", f"{part}_proj") for part in "qkv")
            out[f"{block}.attn.qkv.weight"] = torch.cat([state[n] for n in (q, k, v)])
            biases = [state.get(n.replace("weight", "bias"), torch.zeros(len(tensor))) for n in (q, k, v)]
            out[f"{block}.attn.qkv.bias"] = torch.cat(biases)
            out[f"{block}.attn.qkv.bias_mask"] = torch.cat(
                [torch.ones(len(tensor)), torch.zeros(len(tensor)), torch.ones(len(tensor))]
            )
        elif not any(f".attention.{part}_proj." in name for part in "qkv"):
            out[new] = tensor
    return out


class AuthorsBlock(torch.nn.Module):
    """The paper's block, with the names that its checkpoints have."""

    class _Gated(torch.nn.Module):
        def forward(self, x):
            a, b = x.chunk(2, dim=-1)
            return torch.nn.functional.silu(a) * b

    class _Gain(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.gamma = torch.nn.Parameter(torch.ones(dim))

        def forward(self, x):
            return x * self.gamma

    def __init__(self, dim, heads, gated=True, depth_scaling=True):
        super().__init__()
        nn, hidden = torch.nn, 4 * dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ls1, self.ls2 = self._Gain(dim), self._Gain(dim)
        activation = self._Gated() if gated else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(dim, hidden * (1 + gated)), activation, nn.Linear(hidden, dim))
        if depth_scaling:
            self.t_proj = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 3 * dim))

    def forward(self, x, depth):
        gains = (1.0, 1.0, 1.0)
        if hasattr(self, "t_proj"):
            gains = (self.t_proj(torch.full((len(x), 1, 1), float(depth))) + 1).chunk(3, dim=-1)
        y = self.norm1(x)
        x = x + gains[0] * self.ls1(self.attn(y, y, y, need_weights=False)[0])
        x = x + gains[1] * self.ls2(self.mlp(self.norm2(x)))
        return gains[2] * x


class AuthorsRaptor(torch.nn.Module):
    """The paper's k blocks, with random parameters; `lengths` are the layers of each phase."""

    def __init__(self, lengths, dim=64, heads=2, **block):
        super().__init__()
        self.lengths = lengths
        self.blocks = torch.nn.ModuleList(AuthorsBlock(dim, heads, **block) for _ in lengths)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.normal_(0.0, 0.02 if "t_proj.2" in name else 0.15)
                if "gamma" in name or ("norm" in name and name.endswith("weight")):
                    parameter.add_(1.0).mul_(0.5 if "gamma" in name else 1.0)

    def rollout(self, state: np.ndarray) -> list[np.ndarray]:
        x, states = torch.tensor(state), [state]
        layers = [block for block, length in zip(self.blocks, self.lengths, strict=True) for _ in range(length)]
        with torch.no_grad():
            for depth, block in enumerate(layers, start=1):
                x = block(x, depth)
                states.append(x.numpy())
        return states


def edit_config(folder: pathlib.Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
