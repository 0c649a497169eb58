"""What may lie between images and a foreign network: small modules that keep the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.models.wrapper import find_logits


class FlippedChannels(nn.Module):
    """A network that wants BGR, for RGB images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        return self.network(x.flip(1))


class Resized(nn.Module):
    """A network that gets its images at another size.

    size: (height, width), or the length of the shorter side, which keeps the proportions.

    The resizing is bilinear, with the low-pass filter of Pillow's where it shrinks. The output has the network's
    size; `SegmentationModel` brings it back to that of the images.
    """

    def __init__(self, network: nn.Module, size: int | tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.size, int):
            scale = self.size / min(x.shape[-2:])
            height, width = (max(1, round(side * scale)) for side in x.shape[-2:])
        else:
            height, width = self.size
        if (height, width) != tuple(x.shape[-2:]):
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        return self.network(x)


class Padded(nn.Module):
    """A network that needs sides divisible by `multiple`: images are filled up on the right and below, logits cut back.

    With it, images keep their own size for attack and scores (the protocol `whole`).

    network: (B, 3, H, W) to logits, in any form that `find_logits` understands. fill: three values in the units of
    the network's input; 0 is the mean colour where that is normalised. Logits come back at the images' size.
    Raises UserError for a multiple below 1.
    """

    def __init__(
        self,
        network: nn.Module,
        multiple: int,
        *,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
        output: str | int | None = None,
    ) -> None:
        super().__init__()
        if multiple < 1:
            raise UserError(f"The sides of images are to be multiples of {multiple}; it must be 1 or more.")
        self.network, self.multiple, self.output = network, multiple, output
        self.register_buffer("fill", torch.tensor(list(fill)).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in the network's units -> logits (B, C, H, W)."""
        height, width = images.shape[-2:]
        fill = self.get_buffer("fill").to(images)
        padded = F.pad(images - fill, (0, -width % self.multiple, 0, -height % self.multiple)) + fill
        logits = find_logits(self.network(padded), self.output)
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def get_extra_state(self) -> Tensor:
        """What is filled up belongs to what is fingerprinted as the model."""
        return torch.tensor([self.multiple, *self.get_buffer("fill").flatten().tolist()], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Weights may be loaded whatever they were saved with."""


class FixedBatch(nn.Module):
    """A network that was saved for batches of one size: others are cut up, and the last part is filled up."""

    def __init__(self, network: nn.Module, batch: int) -> None:
        super().__init__()
        self.network = network
        self.batch = batch

    def forward(self, x: Tensor) -> Tensor:
        filled = torch.cat([x, x[-1:].expand(-len(x) % self.batch, -1, -1, -1)])
        return torch.cat([find_logits(self.network(part)) for part in torch.split(filled, self.batch)])[: len(x)]


class Program(nn.Module):
    """A network that is a finished graph and refuses to be told of training or evaluation."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def train(self, mode: bool = True) -> Program:
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        return self.graph(x)


class MaskQueries(nn.Module):
    """Logits of a network that answers with queries, each a distribution over classes and a mask.

    network: called with images and `inputs`, gives an object with class logits (B, Q, C + 1), the last of which is
        "no object", and mask logits (B, Q, h, w), under the names of the transformers library (MaskFormer,
        Mask2Former, OneFormer, EoMT and DETR).
    inputs: further inputs of the network, each (1, n), repeated for every image.

    The mask logits are brought to the size of the input, as the authors of Mask2Former (arXiv 2112.01527) do.
    """

    def __init__(self, network: nn.Module, inputs: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self.inputs = tuple(inputs or ())
        for name, value in (inputs or {}).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, H, W)."""
        inputs = {name: getattr(self, name).expand(len(x), -1) for name in self.inputs}
        raw = self.network(x, **inputs, return_dict=True)
        classes = getattr(raw, "class_queries_logits", None)
        masks = getattr(raw, "masks_queries_logits", None)
        classes, masks = (raw.logits, raw.pred_masks) if classes is None or masks is None else (classes, masks)
        masks = F.interpolate(masks.to(torch.promote_types(masks.dtype, torch.float32)), size=x.shape[-2:],
                              mode="bilinear", align_corners=False)  # fmt: skip
        return query_logits(classes, masks)


def query_logits(classes: Tensor, masks: Tensor) -> Tensor:
    """Logarithms of sum over q of p_q(class) sigmoid(mask_q), the score of MaskFormer (arXiv 2107.06278).

    classes: logits (B, Q, C + 1), the last for "no object". masks: logits (B, Q, H, W). Returns (B, C, H, W), in
    float32 at least. Scores above 1e-30 of the largest possible ones are exact, smaller ones are cut there.
    """
    dtype = torch.promote_types(masks.dtype, torch.float32)
    with torch.autocast(masks.device.type, enabled=False):
        log_class = classes.to(dtype).log_softmax(-1)[..., :-1]
        log_mask = F.logsigmoid(masks.to(dtype))
        # The largest terms are taken out before exp, as in logsumexp; a constant to the gradient, where they cancel.
        class_top = log_class.detach().amax(1, keepdim=True)
        mask_top = log_mask.detach().amax(1, keepdim=True)
        total = torch.einsum("bqc,bqhw->bchw", (log_class - class_top).exp(), (log_mask - mask_top).exp())
        return total.clamp_min(1e-30).log() + class_top.transpose(1, 2).unsqueeze(-1) + mask_top
