"""Rates per step: a linear warm-up, then polynomial decay; and the warm-up of eps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from robseg.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The learning rate of every step.

    lr: the peak. steps: parameter updates in all; warmup: how many of them rise linearly from `warmup_ratio` * lr.
    power: of the polynomial, 1 for a line. floor: the rate that it decays towards.
    count_from: the number of the first step. 0 in PIR-AT's code (arXiv 2306.12941): the first step after the warm-up
        has the peak and the last is still above the floor. 1 in DDC-AT's (arXiv 2003.06555): the last is at the floor.

    Raises UserError for values out of range.
    """

    lr: float
    steps: int
    warmup: int = 0
    warmup_ratio: float = 1e-5
    power: float = 1.0
    floor: float = 0.0
    count_from: Literal[0, 1] = 0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"lr of the schedule is {self.lr}; it must be above 0.")
        if self.steps < 1:
            raise UserError(f"steps of the schedule is {self.steps}; it must be 1 or more.")
        if not 0 <= self.warmup <= self.steps:
            raise UserError(f"warmup of the schedule is {self.warmup} steps; it must be 0 to all {self.steps} steps.")
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"warmup_ratio of the schedule is {self.warmup_ratio}; it must be 0 to 1.")
        if not 0 < self.power < math.inf:
            raise UserError(f"power of the schedule is {self.power}; it must be above 0.")
        if not 0 <= self.floor <= self.lr:
            raise UserError(f"floor of the schedule is {self.floor}; it must be 0 to the peak, {self.lr}.")
        if self.count_from not in (0, 1):
            raise UserError(f"count_from of the schedule is {self.count_from}; it must be 0 or 1.")

    def rate(self, step: int) -> float:
        """The rate that step 0..steps - 1 uses; ValueError for others."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is not one of 0..{self.steps - 1}")
        number = step + self.count_from
        if number < self.warmup:
            return self.lr * (self.warmup_ratio + (1 - self.warmup_ratio) * number / self.warmup)
        left = 1 - (number - self.warmup) / max(self.steps - self.warmup, 1)
        return self.floor + (self.lr - self.floor) * float(max(left, 0.0) ** self.power)


def eps_share(step: int, warmup: int) -> float:
    """What eps is multiplied by in step 0, 1, ...: a line that reaches 1 with the `warmup`-th step; 1 without warm-up.

    The first step is attacked with eps / warmup already: with eps 0 it would be clean training at an attack's price.
    """
    return min((step + 1) / warmup, 1.0) if warmup > 0 else 1.0
