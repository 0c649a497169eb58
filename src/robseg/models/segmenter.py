"""Segmenter (arXiv 2105.05633): a vision transformer and a mask transformer over patches and class embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.models.dropout import drop_path_rates
from robseg.models.layers import pad_to, resize, spatial
from robseg.models.vit import Block, VisionTransformer, init_linear


class MaskTransformer(nn.Module):
    """Patches and class embeddings pass the layers together; the score of a class is its cosine with the patch."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        num_classes: int,
        dropout: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.blocks = nn.ModuleList(Block(width, heads, dropout, rate) for rate in drop_path_rates(drop_path, depth))
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, width))
        self.proj_dec = nn.Linear(encoder_width, width)
        self.proj_patch = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.proj_classes = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_norm = nn.LayerNorm(num_classes)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        self.apply(init_linear)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, n, encoder_width) patch tokens to (B, n, num_classes) scores."""
        tokens = self.proj_dec(patches)
        tokens = torch.cat([tokens, self.cls_emb.expand(len(tokens), -1, -1)], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.decoder_norm(tokens)
        patches, classes = tokens[:, : -self.num_classes], tokens[:, -self.num_classes :]
        patches = F.normalize(patches @ self.proj_patch, dim=-1)
        classes = F.normalize(classes @ self.proj_classes, dim=-1)
        scores: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return scores


class Segmenter(nn.Module):
    """A vision transformer with the mask transformer as its decoder.

    Input (B, 3, H, W) of any size, in [0, 1] and not normalised for the published PIR-AT model; it is padded with
    zeros to multiples of the patch and the logits are cropped back.
    Output in either mode: logits (B, num_classes, H, W); there is no auxiliary head.
    """

    def __init__(self, encoder: VisionTransformer, decoder: MaskTransformer) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, images: Tensor) -> Tensor:
        height, width = spatial(images)
        patch = self.encoder.patch
        rows, columns = -(-height // patch), -(-width // patch)
        padded = pad_to(images, rows * patch, columns * patch)
        scores = self.decoder(self.encoder(padded))
        masks = scores.transpose(1, 2).reshape(len(images), -1, rows, columns)
        return resize(masks, spatial(padded))[..., :height, :width]
