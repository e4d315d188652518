"""The vision transformer or Raptor in this folder, in PyTorch alone: neither JAX nor brh_jax, and nothing is unpickled.

    from brh_torch import load  # this file, beside model.safetensors and config.json

    model = load()  # or load(FOLDER)
    states = model(images)  # [batch, channels, height, width], normalised -> every state [depth + 1, batch, tokens, dim]
    features = model.norm(states[-1])  # after the final norm; tokens are cls, registers, patches
    classes = model.logits(images)  # where there is a classifier

It needs torch and safetensors. Written by `python -m weights_convert SOURCE FOLDER --to-hf`.
"""

import json
import math
import pathlib
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Attention(nn.Module):
    """Multi-head self-attention; patches turn by the rotary embedding where there is one."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.qkv, self.proj = num_heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotations: tuple[Tensor, Tensor] | None) -> Tensor:
        """[batch, tokens, dim] -> the same."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if rotations is not None:
            q, k = rotate(q, *rotations), rotate(k, *rotations)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the patches' queries or keys; the tokens before them carry no place."""
    first = x.shape[-2] - len(cos)
    low, high = x[..., first:, :].chunk(2, -1)
    turned = x[..., first:, :] * cos + torch.cat([-high, low], -1) * sin
    return torch.cat([x[..., :first, :], turned], -2)


class Mlp(nn.Module):
    """The feed-forward layer: plain, or gated with the gate first in `fc1`."""

    def __init__(self, dim: int, hidden: int, kind: str):
        super().__init__()
        self.kind = kind
        self.fc1, self.fc2 = nn.Linear(dim, hidden * (2 if kind == "swiglu" else 1)), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, dim] -> the same."""
        hidden = self.fc1(x)
        if self.kind != "swiglu":
            return self.fc2(ACTIVATIONS[self.kind](hidden))
        gate, value = hidden.chunk(2, -1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scales the channels."""
        return self.gamma * x


class Block(nn.Module):
    """x + s_1 ls1 Attn(LN x), then x + s_2 ls2 MLP(LN x), then s_3 x; the gains s, a Raptor's, are a small MLP of depth."""

    def __init__(self, dim: int, num_heads: int, hidden: int, mlp: str, eps: float, layer_scale: bool, depth_scaling: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.attn, self.mlp = Attention(dim, num_heads), Mlp(dim, hidden, mlp)
        self.ls1, self.ls2 = (LayerScale(dim) if layer_scale else nn.Identity() for _ in range(2))
        self.t_proj = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 3 * dim)) if depth_scaling else None

    def forward(self, x: Tensor, depth: int, rotations: tuple[Tensor, Tensor] | None) -> Tensor:
        """[batch, tokens, dim] -> the same; `depth` counts the layer produced from 1."""
        gains: Any = (1.0, 1.0, 1.0)
        if self.t_proj is not None:
            gains = (self.t_proj(torch.full((1,), float(depth), dtype=x.dtype, device=x.device)) + 1.0).chunk(3)
        x = x + gains[0] * self.ls1(self.attn(self.norm1(x), rotations))
        x = x + gains[1] * self.ls2(self.mlp(self.norm2(x)))
        return gains[2] * x


class Embedding(nn.Module):
    """Images to the first state: patch projection, class and register tokens, position table, norm where there is one."""

    def __init__(self, vit: dict[str, Any]):
        super().__init__()
        dim, p = vit["dim"], vit["patch_size"]
        self.vit, self.table_grid = vit, tuple(vit["position_grid"] or ())
        self.proj = nn.Conv2d(vit["channels"], dim, p, p)
        self.cls_token = nn.Parameter(torch.zeros(vit["num_cls"], dim))
        self.register_tokens = nn.Parameter(torch.zeros(vit["num_registers"], dim))
        self.cls_position = nn.Parameter(torch.zeros(vit["num_cls"], dim))
        self.patch_position = nn.Parameter(torch.zeros(math.prod(self.table_grid) if self.table_grid else 0, dim))
        self.pre_norm = nn.LayerNorm(dim, vit["layer_norm_eps"]) if vit["pre_norm"] else nn.Identity()

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of patches. Raises ValueError for a size that is not a multiple of the patch."""
        p = self.vit["patch_size"]
        if min(height, width) < p or (not self.vit["drop_remainder"] and (height % p or width % p)):
            raise ValueError(f"image size {height} x {width} is not a multiple of the patch size {p}")
        return height // p, width // p

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table on a grid of patches, `[rows * columns, dim]`."""
        if grid == self.table_grid:
            return self.patch_position
        table = self.patch_position.view(1, *self.table_grid, -1).permute(0, 3, 1, 2)
        method = self.vit["position_resampling"]
        size: dict[str, Any] = {"size": grid}
        if method == "cubic-offset":
            size = {"scale_factor": tuple((new + 0.1) / old for new, old in zip(grid, self.table_grid, strict=True))}
        mode = "bilinear" if method == "linear-antialias" else "bicubic"
        table = F.interpolate(table, **size, mode=mode, antialias=method.endswith("antialias"), align_corners=False)
        return table.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)

    def forward(self, images: Tensor) -> Tensor:
        """[batch, channels, height, width] -> [batch, tokens, dim]."""
        batch, p = len(images), self.vit["patch_size"]
        rows, columns = self.grid(*images.shape[-2:])
        patches = self.proj(images[..., : rows * p, : columns * p]).flatten(2).transpose(1, 2)
        if self.table_grid:
            patches = patches + self.positions((rows, columns))
        before = torch.cat([self.cls_token + self.cls_position, self.register_tokens])
        return self.pre_norm(torch.cat([before.expand(batch, -1, -1), patches], 1))


class Model(nn.Module):
    """A ViT, or a Raptor between its teacher's embedding and norm; gives every state.

    Args:
        config: the section `brh_jax.config` of config.json.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        vit = config.get("teacher", config)
        self.vit, raptor = vit, "teacher" in config
        self.embedding, self.norm = Embedding(vit), nn.LayerNorm(vit["dim"], vit["layer_norm_eps"])
        self.schedule = [(layer, layer + 1, 1) for layer in range(vit["depth"])]  # (block, depth, states it stands for)
        if raptor:
            self.schedule = _schedule(config["partition"], config["once"])
        sizes = (vit["dim"], vit["num_heads"], config["mlp_dim"], config["mlp"], config["layer_norm_eps"])
        options = (True, config["depth_scaling"]) if raptor else (vit["layer_scale"], False)
        number = 1 + max(block for block, _, _ in self.schedule)
        self.blocks = nn.ModuleList(Block(*sizes, *options) for _ in range(number))
        self.classifier: nn.Linear | None = None
        self.head_reads = ""

    def forward(self, images: Tensor) -> Tensor:
        """Every state: `[batch, channels, height, width] -> [depth + 1, batch, tokens, dim]`, no final norm."""
        return self.rollout(self.embedding(images), self.embedding.grid(*images.shape[-2:]))

    def rollout(self, state: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Every state from the first, `[batch, tokens, dim]`; `grid` is (rows, columns) of its patches, None for a square."""
        rotations = self._rotations(state, grid)
        states = [state]
        for block, depth, count in self.schedule:
            state = self.blocks[block](state, depth, rotations)
            states += [state] * count
        return torch.stack(states)

    def logits(self, images: Tensor) -> Tensor:
        """What the classifier gives, `[batch, classes]`. Raises ValueError where there is none that reads these tokens."""
        if self.classifier is None:
            raise ValueError("this model has no classifier")
        tokens, num_cls = self.norm(self(images)[-1]), self.vit["num_cls"]
        patches = num_cls + self.vit["num_registers"]
        types = {"cls": tokens[:, :num_cls], "patches": tokens[:, patches:]}
        types = {name: part.mean(1) for name, part in types.items() if part.shape[1]}
        both = self.classifier.in_features == self.vit["dim"] * len(types)
        reads = self.head_reads or ("+".join(types) if both else "cls")
        if not set(reads.split("+")) <= set(types) or (reads == "cls" and num_cls > 1):
            raise ValueError(f"the classifier reads {reads}, of which this model has {num_cls} cls tokens and patches")
        return self.classifier(torch.cat([types[name] for name in reads.split("+")], -1))

    def _rotations(self, state: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines, `[patches, head_dim]`, of 2 pi y / period and 2 pi x / period, places from -1 to 1."""
        if self.vit["rope_periods"] is None:
            return None
        patches = state.shape[1] - self.vit["num_cls"] - self.vit["num_registers"]
        rows, columns = grid or (math.isqrt(patches),) * 2
        options = {"dtype": torch.float32, "device": state.device}
        y, x = (torch.arange(0.5, n, **options) / n * 2 - 1 for n in (rows, columns))
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2, 1)
        angles = 2 * math.pi * places / torch.tensor(self.vit["rope_periods"], **options)
        angles = angles.flatten(1).tile(2)
        return angles.cos().to(state.dtype), angles.sin().to(state.dtype)


def _schedule(partition: dict[str, Any], once: bool) -> list[tuple[int, int, int]]:
    """(block, depth, number of states that it stands for) of every application of a block."""
    found, start = [], 0
    for length, phase in zip(partition["lengths"], partition["phases"], strict=True):
        layers = range(start + 1, start + length + 1)
        found += [(phase, layers[-1], length)] if once else [(phase, depth, 1) for depth in layers]
        start += length
    return found


def load(folder: str | pathlib.Path | None = None, image_size: tuple[int, int] | None = None) -> Model:
    """The model of a folder that has config.json and safetensors; this file's own by default. In float32, in evaluation mode.

    Args:
        image_size: (height, width) whose positions are worked out now, once, as an export to ONNX needs; None for any size.

    Raises:
        ValueError: tensors that are missing, or of another shape than config.json says.
    """
    folder = pathlib.Path(__file__).parent if folder is None else pathlib.Path(folder)
    about = json.loads((folder / "config.json").read_text())["brh_jax"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model = Model(about["config"])
    _fill(model, about["tensors"], tensors)
    if "classifier.weight" in tensors:
        weight = tensors["classifier.weight"]
        model.classifier, model.head_reads = nn.Linear(weight.shape[1], weight.shape[0]), about["head_reads"]
        model.classifier.load_state_dict({"weight": weight, "bias": tensors["classifier.bias"]})
    if image_size is not None and model.embedding.table_grid:
        with torch.no_grad():
            grid = model.embedding.grid(*image_size)
            model.embedding.patch_position = nn.Parameter(model.embedding.positions(grid).clone())
            model.embedding.table_grid = grid
    return model.eval()


@torch.no_grad()
def _fill(model: Model, names: dict[str, list[str]], tensors: dict[str, Tensor]) -> None:
    """Every parameter from the tensors that make it up, one below the other; biases that the file does not have are zero."""
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        layer = parts[1] if parts[0] == "blocks" else ""
        template = ".".join(["blocks", "{layer}", *parts[2:]]) if layer else name
        found = [tensors[source.format(layer=layer)] for source in names.get(template, ())]
        if not found and (name.endswith("bias") or not parameter.numel() or name == "embedding.cls_position"):
            parameter.zero_()
            continue
        values = torch.cat([part.reshape(-1) for part in found]) if found else torch.zeros(0)
        if template == "embedding.patch_position":  # the class tokens' positions stand before it in some tables
            first = values.numel() - parameter.numel()
            if first > 0:
                model.embedding.cls_position.copy_(values[:first].view_as(model.embedding.cls_position))
                values = values[first:]
        if values.numel() != parameter.numel():
            raise ValueError(f"{name} takes {parameter.numel()} numbers, {names.get(template)} hold {values.numel()}")
        parameter.copy_(values.view_as(parameter))
