"""The model under attack: images in [0, 1] to logits at the images' size, whatever the network inside wants."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.errors import UserError

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

OUTPUT_NAMES = ("logits", "out", "seg_logits", "pred", "output")
"""Where logits stand in outputs that are mappings or objects, tried in this order."""


PAIRED_PIXELS = 256 * 256
"""Up to this size a single image goes through the network twice at once on the CPU: torch convolves small batches of
one with other kernels than larger batches, whose rounding would make results depend on the batch size."""


class SegmentationModel(nn.Module):
    """A network with all that lies between images in [0, 1] and logits of their size.

    network: any module. It gets (B, 3, H, W), normalised when `mean` and `std` (per channel, for values in [0, 1])
        are given, and gives logits (B, C, h, w): as a tensor, or in a tuple, mapping, dataclass or object.
    output: the key, attribute or position at which its output holds the logits; None looks for the usual names and
        else takes the only, or the first, four-dimensional tensor.
    precision: "fp32" (true float32, also on GPUs), "tf32", "bf16" and "fp16" (autocast), or "fp64".

    Logits of another size are resized bilinearly (without aligned corners) to the images'. They are returned in
    float32 (float64 for "fp64"). The gradient goes through everything. Raises UserError where no logits are found.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        output: str | int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        if (mean is None) != (std is None):
            raise UserError("mean and std of a model's input belong together; give both or neither.")
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise UserError(f"{name} needs 3 values, for red, green and blue, not {len(values)}.")
        if mean is not None and not all(math.isfinite(value) for value in mean):
            raise UserError(f"mean must be finite in every channel, not {list(mean)}.")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise UserError(f"std must be above 0 and finite in every channel, not {list(std)}.")
        self.network = network
        self.output = output
        # Not persistent: a state dict then holds the network's entries alone.
        for name, values in (("mean", mean), ("std", std)):
            buffer = None if values is None else torch.tensor(list(values)).view(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.set_precision(precision)

    def set_precision(self, precision: Precision) -> None:
        """Choose the arithmetic of all later forward passes; "fp64" converts the weights."""
        self.precision = precision
        if precision == "fp64":
            self.double()

    def normalisation(self) -> tuple[list[float] | None, list[float] | None]:
        """Mean and std of each channel, for images in [0, 1]; (None, None) where the model does not normalise."""
        if self.mean is None or self.std is None:
            return None, None
        return self.mean.flatten().tolist(), self.std.flatten().tolist()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> logits (B, C, H, W)."""
        # A copy: networks that normalise in place would change the caller's images.
        x = images.clone().double() if self.precision == "fp64" else images.clone()
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        batch = len(images)
        if batch == 1 and images.device.type == "cpu" and images.shape[-2] * images.shape[-1] <= PAIRED_PIXELS:
            x = x.repeat(2, 1, 1, 1)
        with self._arithmetic(images.device):
            raw = self.network(x)
        logits = find_logits(raw, self.output)[:batch].to(x.dtype)
        if logits.shape[-2:] != images.shape[-2:]:
            logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        return logits

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def find_logits(raw: Any, output: str | int | None = None) -> Tensor:
    """The logits (B, C, h, w) inside whatever a network returned; UserError says what was there instead."""
    found = _pick(raw, output)
    if not isinstance(found, Tensor):
        raise UserError(f"The model returned {_describe(raw)}, in which no logits (B, C, h, w) were found; "
                        "name them with SegmentationModel(network, output=...).")  # fmt: skip
    if found.dim() != 4 or not found.is_floating_point():
        hint = "; are these predicted classes instead of logits?" if not found.is_floating_point() else "."
        raise UserError(
            f"The model's logits must be floats (B, C, h, w), got {tuple(found.shape)} of {found.dtype}{hint}"
        )
    return found


def _pick(raw: Any, output: str | int | None) -> Any:
    if isinstance(raw, Tensor):
        return raw
    if isinstance(raw, (list, tuple)) and not hasattr(raw, "_fields"):
        if isinstance(output, int):
            return raw[output] if -len(raw) <= output < len(raw) else None
        # Auxiliary heads follow the main one in every code base that returns a tuple; some nest scales in lists.
        found = (_pick(item, None) for item in raw)
        return next((item for item in found if isinstance(item, Tensor) and item.dim() == 4), None)
    entries = _entries(raw)
    if output is not None:
        return entries.get(str(output))
    for name in OUTPUT_NAMES:
        if name in entries:
            return entries[name]
    maps = [value for value in entries.values() if isinstance(value, Tensor) and value.dim() == 4]
    return maps[0] if len(maps) == 1 else None


def _entries(raw: object) -> dict[str, Any]:
    """The named parts of a mapping, named tuple, dataclass or plain object."""
    if isinstance(raw, Mapping):
        return {str(key): value for key, value in raw.items()}
    if dataclasses.is_dataclass(raw):
        return {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    return dict(raw._asdict()) if hasattr(raw, "_asdict") else dict(getattr(raw, "__dict__", {}))


def _describe(raw: Any) -> str:
    parts = ", ".join(_entries(raw))
    if isinstance(raw, (list, tuple)) and not parts:
        return f"a {type(raw).__name__} of {len(raw)} ({', '.join(type(item).__name__ for item in raw[:5])})"
    return f"a {type(raw).__name__}" + (f" with {parts}" if parts else "")
