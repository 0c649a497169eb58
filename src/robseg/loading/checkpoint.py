"""Checkpoint files: from a path to a state dict, and from a state dict into a network, with every entry accounted for.

No code of a file is ever run: pickles are read by PyTorch's restricted unpickler, which knows tensors and plain data.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from robseg.errors import UserError

SHOWN = 3
"""How many names of each kind of mismatch an error lists."""

COUNTERS = ("num_batches_tracked", "n_averaged")
"""Step counters of batch norm and of weight averaging: they may be absent or left over, no prediction uses them."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into names, at any depth."""


WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""How files of weights are usually called."""


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint file, on the CPU, under the names they have there.

    The file is safetensors, or anything torch.save wrote that holds tensors and plain data only. The state dict is
    found by its content: it may be the file itself or lie under any key ("state_dict", "model", ...), beside an
    optimiser, counters or metrics. Where a network and a moving average ("ema") of it are both there, the network is
    taken.

    Raises UserError for a file that is absent, a directory, empty, damaged, no checkpoint, without any weights, or
    that could only be read by running code that it names.
    """
    path = Path(path)
    start = _first_bytes(path)
    tree = _load(path, start)
    found = list(_state_dicts(tree, ()))
    if not found:
        keys = f" with the keys {_listed(map(str, tree), 8)}" if isinstance(tree, dict) and tree else ""
        raise UserError(
            f"The checkpoint '{path}' has no weights (tensors by name); it holds a {type(tree).__name__}{keys}."
        )
    largest = max(len(weights) for _, weights in found)
    networks = [(keys, weights) for keys, weights in found if 2 * len(weights) >= largest]
    return min(networks, key=lambda item: (_is_average(item[0]), -len(item[1])))[1]


def load_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    ignore: tuple[str, ...] = (),
    advice: Callable[[int, int], str] | None = None,
) -> None:
    """Copy a state dict into a network, all of it or, with an error, nothing.

    What all names have in front of the network's own ("module.", "model.", "base_model.", ... in any number) is found
    by comparing the names, and taken off. Where a network is wrapped into a module that has no weights beside it, the
    names may be those of the network inside. Values are cast to the network's dtype and device.

    source: what the state dict came from, for the messages.
    ignore: names, or beginnings of names, that may be left over (such as ("head.",)), as they are after the prefix
        is taken off or as they stand in the file.
    advice: what to do where the file has another number of classes, given that of the file and that of the network.

    Raises UserError, with the network untouched, if entries are missing, left over or of another shape, if integers
    stand where the network has real numbers or the reverse, or if weights are not finite. Step counters of batch norm
    may be absent.
    """
    origin = {_unwrapped(name): name for name in state}
    module = _named_like(module, origin)
    own = _entries(module)
    if len(origin) < len(state):
        raise UserError(f"The checkpoint '{source}' holds some weights twice, once compiled and once not.")
    prefix = _prefix(origin, own)
    fitting = {name.removeprefix(prefix): state[origin[name]] for name in origin if name.startswith(prefix)}
    fitting = {name: value for name, value in fitting.items() if name in own}

    missing = [name for name in own if name not in fitting and not name.endswith(COUNTERS)]
    unexpected = [
        stored
        for name, stored in origin.items()
        if not (name.startswith(prefix) and name.removeprefix(prefix) in own)
        and not name.endswith(COUNTERS)
        and not name.removeprefix(prefix).startswith(ignore)
        and not stored.startswith(ignore)
    ]
    misshapen = [
        (name, value.shape, own[name].shape) for name, value in fitting.items() if value.shape != own[name].shape
    ]
    _refuse_mismatch(source, own, missing, unexpected, misshapen, advice)
    _refuse_values(source, fitting, own, {name for name, _ in module.named_parameters()})
    module.load_state_dict(fitting, strict=False)


def _first_bytes(path: Path) -> bytes:
    """The first bytes of a file, once it is clear that it is a file and not something that was saved by mistake."""
    if path.is_dir():
        files = sorted(file.name for file in path.iterdir() if file.suffix in (".pth", ".pt", ".safetensors", ".bin"))
        inside = f"; it holds {_listed(files, 5)}" if files else ""
        raise UserError(f"'{path}' is a directory; name the checkpoint file itself{inside}.")
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except FileNotFoundError:
        raise UserError(f"There is no checkpoint '{path}'.") from None
    except OSError as error:
        raise UserError(f"The checkpoint '{path}' cannot be read: {error.strerror}.") from error
    if not start:
        raise UserError(f"The checkpoint '{path}' is empty; copy or download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"'{path}' is a Git LFS pointer, not the checkpoint; fetch the file with 'git lfs pull'.")
    if start.lstrip().startswith(b"<"):
        raise UserError(f"'{path}' is a web page, not a checkpoint; the download link led to a page about the file.")
    return start


def _torch_load(path: Path) -> Any:
    with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _numpy_scalars() -> list[Any]:
    """What a metric such as np.float64(75.2) beside the weights is made of: data, not code."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *set(kinds)]


def _damaged_record(path: Path) -> str | None:
    """The first record of a zip archive whose checksum is wrong: torch.load itself never looks, and would load it."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _load(path: Path, start: bytes) -> Any:
    """What a file that begins with `start` holds, with whatever a reader raises on a bad one as a UserError."""
    safe = start[8:9] == b"{"
    try:
        damaged = _damaged_record(path)
        tree = safetensors.torch.load_file(path) if safe else _torch_load(path)
    except Exception as error:
        text = str(error)
        code = re.search(r"GLOBAL (\S+)", text)
        if code:
            raise UserError(
                f"The checkpoint '{path}' can only be read by running code that it names ({code[1]}), which is not "
                "done; where you trust it, load it once with torch.load(..., weights_only=False) and save "
                "model.state_dict() alone."
            ) from error
        if "TorchScript" in text:
            raise UserError(
                f"'{path}' is a TorchScript archive, a whole model; name it as torchscript:{path}, or save the model's "
                "state_dict() instead."
            ) from error
        if safe or start.startswith((b"PK", b"\x80")):
            raise UserError(
                f"The checkpoint '{path}' is truncated or damaged, or neither torch.save nor safetensors wrote it."
            ) from error
        raise UserError(f"'{path}' is neither a PyTorch nor a safetensors checkpoint.") from error
    if damaged is not None:
        raise UserError(f"The checkpoint '{path}' is damaged (the checksum of '{damaged}' is wrong); fetch it again.")
    return tree


def _state_dicts(tree: Any, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every dict in the tree that holds tensors by name, with the keys that lead to it; optimisers are passed over."""
    if not isinstance(tree, dict):
        return
    tensors = {key: value.detach() for key, value in tree.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield keys, tensors
    for key, value in tree.items():
        if isinstance(key, str) and not key.lower().startswith("optim"):
            yield from _state_dicts(value, (*keys, key))


def _is_average(keys: tuple[str, ...]) -> bool:
    return "ema" in re.split(r"[^a-z]+", " ".join(keys).lower())


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefix(names: Mapping[str, str], own: Mapping[str, Tensor]) -> str:
    """What to take off the names so that most become the network's own; of equally good prefixes the shortest."""
    prefixes = {""}
    for name in names:
        parts = name.split(".")
        prefixes.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts)))
    return min(prefixes, key=lambda prefix: (-sum(prefix + name in names for name in own), len(prefix), prefix))


def _entries(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _named_like(module: nn.Module, names: Mapping[str, str]) -> nn.Module:
    """The module, or the one inside it that holds all its parameters, whichever has most of the names."""
    candidates = [module]
    while not list(candidates[-1].parameters(recurse=False)):
        children = [child for child in candidates[-1].children() if any(True for _ in child.parameters())]
        if len(children) != 1:
            break
        candidates.append(children[0])

    def shared(candidate: nn.Module) -> int:
        own = _entries(candidate)
        prefix = _prefix(names, own)
        return sum(prefix + name in names for name in own)

    return max(candidates, key=shared) if len(candidates) > 1 else module


def _refuse_mismatch(
    source: str,
    own: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[tuple[str, torch.Size, torch.Size]],
    advice: Callable[[int, int], str] | None,
) -> None:
    if not (missing or unexpected or misshapen):
        return
    classes = _class_counts(misshapen)
    if classes and not missing and not unexpected:
        name, stored, wanted = misshapen[0]
        raise UserError(
            f"The checkpoint '{source}' has {classes[0]} classes, the model {classes[1]} ({name} is {list(stored)} in "
            f"the file, {list(wanted)} in the model); {advice(*classes) if advice else 'choose with --classes'}."
        )
    if len(missing) == sum(not name.endswith(COUNTERS) for name in own):
        raise UserError(
            f"The checkpoint '{source}' is of another architecture: of its names ({_listed(unexpected)}) none is the "
            f"model's ({_listed(missing)})."
        )
    shapes = [f"{name} ({list(stored)} in the file, {list(wanted)} in the model)" for name, stored, wanted in misshapen]
    kinds = [(missing, "missing"), (unexpected, "not the model's"), (shapes, "of another shape")]
    parts = [f"{len(names)} {kind}: {_listed(names)}" for names, kind in kinds if names]
    raise UserError(f"The checkpoint '{source}' does not fit the model; entries {'; '.join(parts)}.")


def _class_counts(misshapen: list[tuple[str, torch.Size, torch.Size]]) -> tuple[int, int] | None:
    """(classes in the file, classes of the model) if every difference of shape is one of class counts.

    That is so if all entries differ in the same way and only in their first dimension larger than one, and if there
    are among them a weight (two dimensions or more) and an entry whose very first dimension counts classes.
    """
    pairs, first, weight = set(), False, False
    for _, stored, wanted in misshapen:
        differing = [i for i, (a, b) in enumerate(zip(stored, wanted, strict=False)) if a != b]
        if len(stored) != len(wanted) or len(differing) != 1 or any(size != 1 for size in wanted[: differing[0]]):
            return None
        pairs.add((stored[differing[0]], wanted[differing[0]]))
        first, weight = first or differing[0] == 0, weight or len(wanted) > 1
    return pairs.pop() if first and weight and len(pairs) == 1 else None


def _refuse_values(source: str, fitting: Mapping[str, Tensor], own: Mapping[str, Tensor], parameters: set[str]) -> None:
    for name, value in fitting.items():
        if name.endswith(COUNTERS):
            continue
        if value.is_floating_point() != own[name].is_floating_point() or value.is_complex() != own[name].is_complex():
            raise UserError(
                f"The checkpoint '{source}' holds {name} as {_dtype(value)}, where the model has {_dtype(own[name])}."
            )
    broken = [name for name in fitting if name in parameters and not bool(fitting[name].isfinite().all())]
    if broken:
        raise UserError(
            f"The checkpoint '{source}' holds infinite or undefined weights in {len(broken)} entries "
            f"({_listed(broken)}); its training diverged or the file is damaged."
        )


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _listed(names: Iterable[str], shown: int = SHOWN) -> str:
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
