"""Packages that are imported only for the models that need them."""

from __future__ import annotations

import importlib
from types import ModuleType

from robseg.errors import UserError
from robseg.loading.factory import first_line


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a package of an optional extra; UserError says how to install it, or what is wrong with it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise UserError(
                f"{purpose} need {module}, which fails to import: {first_line(error)}; see README, 'Optional extras'."
            ) from error
        raise UserError(
            f"{purpose} need the package {module}, which is not installed: pip install 'robseg[{extra}]'."
        ) from error
    except Exception as error:
        # A build for another torch raises whatever its compiled part stumbles over.
        raise UserError(
            f"{purpose} need {module}, which does not work with this installation of torch ({first_line(error)}); "
            "install the build that matches it, see README, 'Optional extras'."
        ) from error
