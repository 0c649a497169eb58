"""Labels of the Semantic Boundaries Dataset: MATLAB files in which GTcls.Segmentation is the map of classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robseg.errors import UserError


def read_mat_label(path: Path) -> Tensor:
    """GTcls.Segmentation of a .mat file, (H, W) int64.

    Raises UserError where the file is absent, broken or without that field, and where SciPy is not installed.
    """
    need_scipy(path)
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["GTcls"], simplify_cells=True)
    except FileNotFoundError:
        raise UserError(f"The label '{path}' does not exist.") from None
    except PermissionError:
        raise UserError(f"The label '{path}' may not be read; its permissions forbid it.") from None
    # SciPy meets a damaged file with whatever its parser stumbles over.
    except Exception as fault:
        reason = str(fault).rstrip(".") or type(fault).__name__
        raise UserError(
            f"The label '{path}' cannot be decoded ({reason}); the file is broken or incomplete, so fetch it again."
        ) from fault
    labels = content.get("GTcls")
    values = np.asarray(labels.get("Segmentation")) if isinstance(labels, dict) else np.asarray(None)
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise UserError(
            f"The label '{path}' has no map GTcls.Segmentation; expected a file of the folder cls of the Semantic "
            "Boundaries Dataset."
        )
    return torch.from_numpy(values.astype(np.int64))


def need_scipy(path: Path) -> None:
    """Raise UserError, for the label `path`, where SciPy is not installed."""
    if importlib.util.find_spec("scipy") is None:
        raise UserError(
            f"The label '{path}' is a MATLAB file, which needs SciPy: install it with pip install 'robseg[sbd]'."
        )
