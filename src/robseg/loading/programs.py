"""Models saved as programs: TorchScript and torch.export files."""

from __future__ import annotations

import io
import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robseg.errors import UserError
from robseg.loading.factory import first_line
from robseg.loading.sizes import parse_size
from robseg.models.adapters import FixedBatch, Program, Resized
from robseg.models.wrapper import SegmentationModel
from robseg.spec import Spec

Kind = Literal["torchscript", "export", "onnx"]


def program_kind(path: Path) -> Kind | None:
    """Which kind of program a file is, by its content; None for anything else, such as a checkpoint."""
    if path.suffix == ".onnx":
        return "onnx"
    names = _records(path)
    if any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in names):
        return "torchscript"
    if any(name.rpartition("/")[2] in ("archive_format", "serialized_exported_program.json") for name in names):
        return "export"
    return None


def open_program(spec: Spec) -> SegmentationModel:
    """torchscript:FILE or export:FILE, with ?size=HxW where images are to be brought to another size inside.

    The program gets images in [0, 1], normalised only as --mean and --std say. TorchScript runs in its own
    interpreter; parts of a torch.export file that only pickle could read are refused. Raises UserError for a file
    that is absent, damaged or of another kind.
    """
    kind, path = spec.name, Path(spec.root or "").expanduser()
    for option in spec.options:
        if option != "size":
            raise UserError(f"The option '{option}' of {kind}:{path} is unknown; the only one is size.")
    if kind == "onnx":
        raise UserError(
            f"'{path}' is an ONNX file, which robseg does not run: no converter to PyTorch is sound enough to attack "
            "what it gives; save the model with torch.export, or name the code it came from as package.module:factory."
        )
    if not path.is_file():
        raise UserError(f"There is no file '{path}'.")
    found = program_kind(path)
    if found != kind:
        if found is not None:
            raise UserError(f"'{path}' is no file of {kind}; name it as {found}:{path}.")
        whole = zipfile.is_zipfile(path)
        what = f"was not saved by torch.{'jit.save' if kind == 'torchscript' else 'export.save'}" if whole else (
            "is truncated or damaged"
        )  # fmt: skip
        raise UserError(f"'{path}' {what}; {kind}: needs such a file, whole.")
    network = _torchscript(path) if kind == "torchscript" else _exported(path)
    size = parse_size(spec.options["size"]) if "size" in spec.options else None
    return SegmentationModel(network if size is None else Resized(network, size))


def _torchscript(path: Path) -> nn.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"The TorchScript file '{path}' cannot be read: {first_line(error)}") from error
    return script


def _exported(path: Path) -> nn.Module:
    _refuse_pickles(path)
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        program = torch.export.load(path)
        graph = program.module()
    except Exception as error:
        # The reader lets the errors of its many parts through.
        raise UserError(f"The torch.export file '{path}' cannot be read: {first_line(error)}") from error
    finally:
        log.setLevel(level)
    shape = _input_shape(program, path)
    network: nn.Module = Program(graph)
    if isinstance(shape[0], int):
        network = FixedBatch(network, shape[0])
    height, width = shape[2], shape[3]
    return Resized(network, (height, width)) if isinstance(height, int) and isinstance(width, int) else network


def _input_shape(program: Any, path: Path) -> list[Any]:
    """The sides of the program's image input: whole numbers where they are fixed."""
    inputs = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [list(values[name].shape) for name in inputs if isinstance(values.get(name), torch.Tensor)]
    if len(inputs) != 1 or len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(
            f"The program in '{path}' takes {len(inputs)} inputs {shapes}; it must take one, of images (B, 3, H, W)."
        )
    return shapes[0]


def _refuse_pickles(path: Path) -> None:
    """Whatever torch.export.load would unpickle must be readable without running code; it does not insist itself."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            start = archive.open(name).read(4)
            if not start.startswith((b"PK\x03\x04", b"\x80")):
                continue
            content = archive.read(name)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, ValueError) as error:
                if start.startswith(b"\x80") and not _is_pickle(content):
                    continue
                raise UserError(
                    f"'{path}' can only be read by unpickling '{name}', which may run code and is not done; export "
                    "the model without custom objects."
                ) from error


def _is_pickle(content: bytes) -> bool:
    """Raw numbers may start like a pickle; a pickle also has a known protocol, and ends with its stop sign."""
    return content[1] <= pickle.HIGHEST_PROTOCOL and content.rstrip(b"\0").endswith(b".")


def _records(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []
