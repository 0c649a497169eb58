"""Scalars and pictures for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robseg.data.base import IGNORE_INDEX, ClassList
from robseg.errors import UserError
from robseg.training.run_folder import Picture


class Board:
    """Writes what metrics.jsonl gets to event files as well."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    @staticmethod
    @contextmanager
    def open(folder: Path) -> Iterator[Board]:
        """Event files in FOLDER/tensorboard. Raises UserError where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "TensorBoard is not installed; pip install 'robseg[tensorboard]', or leave tensorboard=true away."
            ) from error
        writer = SummaryWriter(str(folder / "tensorboard"))
        try:
            yield Board(writer)
        finally:
            writer.close()

    def add(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl."""
        for name, value in _numbers(line):
            self._writer.add_scalar(name, value, line["step"])

    def add_pictures(self, step: int, pictures: Sequence[Picture], classes: ClassList) -> None:
        """Each picture as one row: image, label, prediction, and the latter two under attack."""
        colours = torch.zeros(IGNORE_INDEX + 1, 3)
        colours[: len(classes)] = torch.tensor(classes.colours) / 255
        for index, picture in enumerate(pictures):
            tiles = [values for values in picture if values is not None]
            row = torch.cat([_coloured(tile.cpu(), colours) for tile in tiles], dim=2)
            self._writer.add_image(f"samples/{index}", row, step)


def _coloured(values: Tensor, colours: Tensor) -> Tensor:
    return values if values.ndim == 3 else colours[values].permute(2, 0, 1)


def _numbers(line: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{at}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and key not in ("step", "epoch", "images"):
            yield f"{at}{key}", value
