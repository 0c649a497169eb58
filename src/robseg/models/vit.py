"""The vision transformer (arXiv 2010.11929) as a backbone that keeps its patch tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.models.dropout import Dropout, DropPath, drop_path_rates, dropped
from robseg.models.layers import resize


class Attention(nn.Module):
    """Multi-head self-attention over (B, tokens, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if self.training and self.dropout > 0:
            # torch's fused attention drops with numbers of the global generator.
            weights = ((query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5).softmax(-1)
            mixed = dropped(weights, self.dropout, weights.shape[1:]) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        output: Tensor = self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, count, width)))
        return output


class Mlp(nn.Module):
    """Two linear layers with GELU between, each followed by dropout."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.drop = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.drop(self.fc2(self.drop(self.act(self.fc1(tokens)))))
        return output


class Block(nn.Module):
    """A pre-norm transformer block with an MLP four times wider: (B, tokens, width) -> same."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, dropout)
        self.mlp = Mlp(width, 4 * width, dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        output: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return output


class PatchEmbedding(nn.Module):
    """Non-overlapping patches as tokens: (B, 3, H, W) to (B, H / patch * W / patch, width), row by row."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class VisionTransformer(nn.Module):
    """ViT with a class token and a learned table of positions.

    image_size: the side of the square crop that the table was learned on; for other sizes it is resized bilinearly.
    head: the ImageNet classifier of the published checkpoints. Nothing here uses it; it is kept, frozen, so that
    their names and ours agree entry by entry.
    """

    def __init__(
        self,
        image_size: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        drop_path: float = 0.0,
        head_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.width = width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, width))
        self.patch_embed = PatchEmbedding(patch, width)
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate) for rate in drop_path_rates(drop_path, depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, head_classes).requires_grad_(False)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_linear)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), H and W multiples of the patch, to patch tokens (B, H / patch * W / patch, width)."""
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + resize_positions(self.pos_embed, grid)
        for block in self.blocks:
            tokens = block(tokens)
        output: Tensor = self.norm(tokens)[:, 1:]
        return output


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A table (1, 1 + n * n, width) of a class token and n x n patches as (1, 1 + grid[0] * grid[1], width)."""
    side = math.isqrt(table.shape[1] - 1)
    if grid == (side, side):
        return table
    patches = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    return torch.cat([table[:, :1], resize(patches, grid).flatten(2).transpose(1, 2)], dim=1)


def init_linear(module: nn.Module) -> None:
    """Linear layers start from a truncated normal of 0.02 and zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
