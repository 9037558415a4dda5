"""DINOv3's own network, written anew in torch: what make_dinov3.py compares with.

It follows facebookresearch/dinov3 (models/vision_transformer.py and layers/): the same parameters under the same names
and the same arithmetic in the same order, without what only training uses. `pytest -m parity` loads its weights into
timm's and transformers' networks, which must then agree with it.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

PATCH, WIDTH, HEADS, DEPTH, REGISTERS = 4, 24, 2, 2, 4
HIDDEN = 48  # of the MLP


class Rope(nn.Module):
    """Sines and cosines of a grid of patches; the periods are a buffer in the file, rounded to bfloat16."""

    def __init__(self, head_width: int, rounded: bool = True):
        super().__init__()
        periods = 100.0 ** (2 * torch.arange(head_width // 4, dtype=torch.float32) / (head_width // 2))
        self.register_buffer("periods", periods.to(torch.bfloat16).to(torch.float32) if rounded else periods)

    def forward(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.arange(0.5, rows) / rows
        x = torch.arange(0.5, columns) / columns
        centers = 2.0 * torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1) - 1.0
        angles = 2 * math.pi * centers[:, :, None] / self.periods[None, None, :]
        angles = angles.flatten(1, 2).tile(2)  # (N, d)
        return torch.sin(angles), torch.cos(angles)


def rotate(x: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor) -> torch.Tensor:
    """Rotate the patches among tokens (B, H, T, d); what precedes them stays."""
    prefix = x.shape[-2] - sin.shape[-2]
    patches = x[..., prefix:, :]
    first, second = patches.chunk(2, dim=-1)
    rotated = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([x[..., :prefix, :], rotated], dim=-2)


class MaskedLinear(nn.Linear):
    """Query, key and value, with a bias that is multiplied by a mask."""

    def __init__(self, inputs: int, outputs: int, mask: tuple[float, float, float]):
        super().__init__(inputs, outputs)
        self.register_buffer("bias_mask", torch.tensor(mask).repeat_interleave(outputs // 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias * self.bias_mask)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, mask: tuple[float, float, float] | None):
        super().__init__()
        self.heads = heads
        self.qkv = MaskedLinear(width, 3 * width, mask) if mask else nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.weights = nn.Identity()  # receives the attention
        self.rotated_key = nn.Identity()  # receives the key after its rotation

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rope), self.rotated_key(rotate(k, *rope))
        weights = self.weights((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Three layers; the hidden width is two thirds of `hidden`, aligned."""

    def __init__(self, width: int, hidden: int, align_to: int):
        super().__init__()
        hidden = int(hidden * 2 / 3)
        hidden += -hidden % align_to
        self.w1, self.w2, self.w3 = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mask: tuple[float, float, float] | None, mlp: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)
        self.attn, self.mlp = Attention(width, heads, mask), mlp

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Official(nn.Module):
    """DINOv3's `DinoVisionTransformer`."""

    def __init__(
        self,
        *,
        width: int = WIDTH,
        heads: int = HEADS,
        depth: int = DEPTH,
        mask: tuple[float, float, float] | None = (1.0, 0.0, 1.0),
        align_to: int | None = None,  # of SwiGLU; None: two layers with GELU
        untied: bool = False,  # another norm for CLS and registers
        local: bool = False,  # another norm for CLS in the local crops of training
        rounded: bool = True,
    ):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.storage_tokens = nn.Parameter(torch.zeros(1, REGISTERS, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.rope_embed = Rope(width // heads, rounded)
        self.blocks = nn.ModuleList(
            Block(width, heads, mask, SwiGLU(width, 72, align_to) if align_to else Mlp(width, HIDDEN))
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.cls_norm = nn.LayerNorm(width, eps=1e-5) if untied else None
        self.local_cls_norm = nn.LayerNorm(width, eps=1e-5) if local else None

    def final(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the final norms to tokens (B, T, D)."""
        prefix = 1 + REGISTERS
        return torch.cat([(self.cls_norm or self.norm)(x[:, :prefix]), self.norm(x[:, prefix:])], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed.proj(images)
        rope = self.rope_embed(*x.shape[2:])
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(len(images), -1, -1)
        x = torch.cat([prefix, x.flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, rope)
        return self.final(x)
