"""A Raptor's stage-2 training step in PyTorch, written after sections 3 and 4 of the paper as the peer of ours.

The fastest plain PyTorch that computes the same: one projection for queries, keys and values, fused attention, fused
AdamW, gradients set to None.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn import functional as F

from brh_jax.distill import JointSettings
from brh_jax.models import RaptorConfig


class RaptorBlock(nn.Module):
    """x + s_attn ls1 Attn(LN x), then x + s_mlp ls2 SwiGLU(LN x), then s_out x; the gains s are a small MLP of depth."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.gate, self.value = nn.Linear(dim, mlp_dim), nn.Linear(dim, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, dim)
        self.ls1, self.ls2 = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.depth1, self.depth2 = nn.Linear(1, 16), nn.Linear(16, 3 * dim)

    def forward(self, x: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        """[batch, tokens, dim] -> [batch, tokens, dim]; `depth` is `[1]`, the 1-based index of the layer produced."""
        batch, tokens, dim = x.shape
        attn, mlp, out = (self.depth2(F.silu(self.depth1(depth))) + 1).to(x.dtype).chunk(3)
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, tokens, dim)
        x = x + attn * self.ls1 * self.proj(mixed)
        # Two products: the halves of one would be glued together again in the backward pass.
        normed = self.norm2(x)
        x = x + mlp * self.ls2 * self.fc2(F.silu(self.gate(normed)) * self.value(normed))
        return out * x


class Raptor(nn.Module):
    """k blocks, rolled out over a contiguous partition from a_0."""

    def __init__(self, config: RaptorConfig):
        super().__init__()
        heads = config.teacher.num_heads
        blocks = [RaptorBlock(config.dim, heads, config.mlp_dim, config.layer_norm_eps) for _ in config.partition.lengths]
        self.blocks = nn.ModuleList(blocks)
        self.labels = config.partition.labels

    def forward(self, state: torch.Tensor) -> list[torch.Tensor]:
        """a_0 -> a_1 ... a_L, a list."""
        states = []
        for layer, phase in enumerate(self.labels, start=1):
            state = self.blocks[phase](state, torch.full((1,), float(layer), device=state.device))
            states.append(state)
        return states

    @torch.no_grad()
    def copy_from(self, params: dict) -> None:
        """Takes the weights of ours, the parameters of `brh_jax.models.raptor.Blocks`."""
        for phase, block in enumerate(self.blocks, start=1):
            flat = {name: np.asarray(leaf) for name, leaf in _flatten(params[f"phase_{phase}"])}
            dim = flat["norm1/scale"].shape[0]
            linear = {"attn/qkv": (block.qkv, dim), "attn/proj": (block.proj, dim)}
            for half, name in enumerate(("gate", "value")):
                linear[f"mlp/{name}"] = (getattr(block, name), dim)
                flat |= {f"mlp/{name}/{part}": flat[f"mlp/fc1/{part}"][..., half, :] for part in ("kernel", "bias")}
            linear |= {"mlp/fc2": (block.fc2, block.fc2.in_features)}
            linear |= {"depth_scaling/fc1": (block.depth1, 1), "depth_scaling/fc2": (block.depth2, 16)}
            for name, (layer, inputs) in linear.items():
                layer.weight.copy_(torch.from_numpy(flat[f"{name}/kernel"].reshape(inputs, -1).T.copy()))
                layer.bias.copy_(torch.from_numpy(flat[f"{name}/bias"].reshape(-1).copy()))
            for index, (norm, scale) in enumerate([(block.norm1, block.ls1), (block.norm2, block.ls2)], start=1):
                norm.weight.copy_(torch.from_numpy(flat[f"norm{index}/scale"].copy()))
                norm.bias.copy_(torch.from_numpy(flat[f"norm{index}/bias"].copy()))
                scale.copy_(torch.from_numpy(flat[f"ls{index}/scale"].copy()))


class Step:
    """One optimiser step of stage 2 on a batch; gives the loss before it.

    Args:
        token_weights: `[tokens]`, of the squared errors.
        settings: the learning rate is their peak, the schedule costs nothing.
        dtype: of the products; parameters, residual stream, loss and optimiser stay float32 as in ours.
        compiled: through torch.compile.
    """

    def __init__(
        self,
        config: RaptorConfig,
        params: dict,
        token_weights: ArrayLike,
        settings: JointSettings,
        *,
        device: str,
        dtype: torch.dtype,
        compiled: bool = False,
    ):
        self.raptor = Raptor(config).to(device)
        self.raptor.copy_from(params)
        self.weights = torch.from_numpy(np.asarray(token_weights, np.float32)).to(device)
        rates = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
        self.optimiser = torch.optim.AdamW(self.raptor.parameters(), **rates, fused=True)
        self.clip_norm, self.dtype, self.device = settings.clip_norm, dtype, device
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def __call__(self, states: list[torch.Tensor]) -> torch.Tensor:
        """`states`: a_0 ... a_L of the teacher, a list of `[batch, tokens, dim]`."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(states)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.raptor.parameters(), self.clip_norm)
        self.optimiser.step()
        return loss.detach()

    def _loss(self, states):
        predicted = self.raptor(states[0].float())
        errors = [
            (guess.float() - state.float()).square().mean(dim=(0, 2)) for guess, state in zip(predicted, states[1:], strict=True)
        ]
        return (torch.stack(errors) @ self.weights).mean()


def _flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}/")
        else:
            yield prefix + key, value
