"""robseg: measure how robust a semantic segmentation model is to adversarial perturbations, and train robust ones.

import robseg

result = robseg.evaluate("package.module:factory", "camvid:CamVid?split=val", eps=[4, 8])
print(result.at(8).worst_case.miou)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robseg.attacks.apgd import apgd as apgd
    from robseg.attacks.catalogue import AttackConfig as AttackConfig
    from robseg.attacks.pgd import bim as bim
    from robseg.attacks.pgd import fgsm as fgsm
    from robseg.attacks.pgd import pgd as pgd
    from robseg.attacks.sea import sea as sea
    from robseg.data import open_data as open_data
    from robseg.errors import UserError as UserError
    from robseg.evaluation.evaluate import evaluate as evaluate
    from robseg.models.wrapper import SegmentationModel as SegmentationModel
    from robseg.records.result import Result as Result
    from robseg.records.result import read_result as read_result
    from robseg.training.train import train as train

_HOMES = {
    "AttackConfig": "robseg.attacks.catalogue",
    "Result": "robseg.records.result",
    "SegmentationModel": "robseg.models.wrapper",
    "UserError": "robseg.errors",
    "apgd": "robseg.attacks.apgd",
    "bim": "robseg.attacks.pgd",
    "evaluate": "robseg.evaluation.evaluate",
    "fgsm": "robseg.attacks.pgd",
    "open_data": "robseg.data",
    "pgd": "robseg.attacks.pgd",
    "read_result": "robseg.records.result",
    "sea": "robseg.attacks.sea",
    "train": "robseg.training.train",
}
"""Where each public name lives; loaded when first used, so that `robseg --help` need not wait for torch."""

__all__ = [*sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'robseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(_HOMES)
