"""Segmentation models of the transformers library, from a folder or from the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robseg.errors import UserError, unknown_name
from robseg.loading.extras import require
from robseg.loading.factory import first_line
from robseg.loading.places import hub_folder
from robseg.loading.processor import InputConvention, read_processor
from robseg.loading.sizes import parse_size
from robseg.models.adapters import FlippedChannels, MaskQueries, Resized
from robseg.models.wrapper import SegmentationModel
from robseg.spec import Spec

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAPPINGS = ("MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING", "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING")
TABLES = ("relative_position_index", "position_ids", "relative_coords_table", "num_batches_tracked")
"""Ends of the names of constants, which files of older versions hold beside the weights."""


def open_huggingface(spec: Spec, has_checkpoint: bool, has_normalisation: bool) -> SegmentationModel:
    """hf:FOLDER or hf:NAME of the Hub, with ?size=processor, ?size=512, ?size=512x1024 and ?revision=...

    Mean, std, range and channel order are those of the folder's image processor. Images keep their size, unless the
    network takes one size only (it then gets that) or `size` says otherwise; the logits come back at the images' size.
    Models that answer with queries (Mask2Former and its kin) give the logarithms of their class scores.

    has_checkpoint: weights follow, so the folder may lack them. has_normalisation: mean and std follow likewise.
    Raises UserError for a folder without configuration, weights or processor, a model of another task, weights that do
    not fit in every entry, or code that would have to be run.
    """
    for option in spec.options:
        if option not in ("size", "revision"):
            raise unknown_name("option of hf:", option, ("size", "revision"))
    if not spec.root:
        raise UserError("hf: needs a folder or a name of the Hugging Face Hub, as hf:nvidia/segformer-b0-ade.")
    transformers = require("transformers", "transformers", "Models of the form hf:NAME")
    folder = Path(spec.root).expanduser()
    if not folder.is_dir():
        if spec.root.count("/") > 1 or spec.root.startswith((".", "/", "~")):
            raise UserError(f"There is no folder '{spec.root}'.")
        folder = hub_folder(spec.root, spec.options.get("revision"))
    if not (folder / "config.json").is_file():
        raise UserError(f"The folder '{folder}' has no config.json; hf: takes what save_pretrained() of a model wrote.")
    convention = read_processor(folder)
    if convention is None and not has_normalisation:
        raise UserError(
            f"The folder '{folder}' has no preprocessor_config.json, so its normalisation is unknown; put that file "
            "there, or give --mean and --std."
        )
    with _quiet(transformers):
        config, kind = _model_class(transformers, folder)
        model = _load(kind, config, folder, has_checkpoint)
        tokens = _task_tokens(transformers, folder, config) if config.model_type == "oneformer" else {}
    network: nn.Module = MaskQueries(model, tokens) if _has_queries(model) else model
    if convention is not None and convention.bgr:
        network = FlippedChannels(network)
    size = _size(spec.options.get("size"), convention, model, tokens)
    network = network if size is None else Resized(network, size)
    if convention is None:
        return SegmentationModel(network)
    return SegmentationModel(network, mean=convention.mean, std=convention.std)


def _model_class(transformers: Any, folder: Path) -> tuple[Any, type[nn.Module]]:
    """The configuration in a folder, and the class of segmentation models for it."""
    try:
        text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The library raises what its configuration classes do; the reason is in the message.
        if "trust_remote_code" in str(error):
            raise UserError(
                f"The model in '{folder}' brings its own code, which is not run; build it in a function of yours and "
                "name that as package.module:factory."
            ) from error
        raise UserError(f"'{folder / 'config.json'}' is no configuration of a model: {first_line(error)}") from error
    mappings = [getattr(transformers, name) for name in MAPPINGS]
    found = next((mapping[type(config)] for mapping in mappings if type(config) in mapping), None)
    if found is None:
        raise UserError(
            f"The model in '{folder}' is a '{config.model_type}', for which the transformers library has no semantic "
            "segmentation."
        )
    saved = (text.get("architectures") or []) if isinstance(text, dict) else []
    if saved and found.__name__ not in saved:
        raise UserError(
            f"The model in '{folder}' is a {saved[0]}, made for another task; hf: needs a {found.__name__}."
        )
    return config, found


def _load(kind: Any, config: Any, folder: Path, has_checkpoint: bool) -> nn.Module:
    """The model with the folder's weights, each of which must have its place; with fresh ones for a checkpoint."""
    # These make attention masks in float32, which torch's fused attention misreads beside numbers of another width.
    options = {"attn_implementation": "eager"} if str(config.model_type).startswith("eomt") else {}
    if not any((folder / name).is_file() for name in WEIGHTS):
        if not has_checkpoint:
            raise UserError(
                f"The folder '{folder}' has no weights ({WEIGHTS[0]} or {WEIGHTS[2]}); put that file there, or give "
                "one with --checkpoint."
            )
        bare: nn.Module = _built(lambda: kind._from_config(config, **options), folder).float().eval()
        return bare
    model, info = _built(
        lambda: kind.from_pretrained(folder, config=config, local_files_only=True, output_loading_info=True, **options),
        folder,
    )
    unexpected = [name for name in info["unexpected_keys"] if not name.endswith(TABLES)]
    mismatched = [str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]]
    faults = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:3])}"
        for names, what in (
            (list(info["missing_keys"]), "missing"),
            (unexpected, "not the model's"),
            (mismatched, "of another shape"),
        )
        if names
    ]
    if faults and not has_checkpoint:
        raise UserError(f"The weights in '{folder}' do not fit its config.json; entries {'; '.join(faults)}.")
    network: nn.Module = model.float().eval()
    return network


def _built(build: Any, folder: Path) -> Any:
    try:
        return build()
    except UserError:
        raise
    except Exception as error:
        # Damaged files, shapes that do not fit, backbones of packages that are absent: the library's own words.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        raise UserError(
            f"The model in '{folder}' cannot be loaded: {type(error).__name__}: {lines[0].rstrip('.')}."
        ) from error


def _has_queries(model: nn.Module) -> bool:
    name = type(model).__name__
    return name.endswith(("UniversalSegmentation", "InstanceSegmentation")) or name == "DetrForSegmentation"


def _task_tokens(transformers: Any, folder: Path, config: Any) -> dict[str, torch.Tensor]:
    """OneFormer is told its task by a sentence."""
    missing = (
        f"The OneFormer in '{folder}' is told its task in words, for which its tokenizer (tokenizer.json, or "
        "vocab.json and merges.txt) must lie there"
    )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{missing}.")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoded = tokenizer(
            ["the task is semantic"], padding="max_length", max_length=config.task_seq_len, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
    except Exception as error:
        raise UserError(f"{missing}: {first_line(error)}") from error
    return {"task_inputs": encoded["input_ids"]}


def _size(
    wanted: str | None, convention: InputConvention | None, model: nn.Module, tokens: dict[str, torch.Tensor]
) -> int | tuple[int, int] | None:
    native = None if convention is None else convention.size
    if wanted == "processor":
        if native is None:
            raise UserError("size=processor needs a size in preprocessor_config.json; give it as size=HEIGHTxWIDTH.")
        return native
    if wanted is not None:
        return parse_size(wanted)
    fixed = _pair(getattr(getattr(model, "config", None), "image_size", None))
    if fixed is None or tokens:
        return None
    height, width = fixed
    other = (height + height // 2 + 6, width + 11)
    return fixed if _runs(model, fixed) and not _runs(model, other) else None


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return None


def _runs(model: nn.Module, size: tuple[int, int]) -> bool:
    """Whether the network takes images of a size. Tried with real ones: a trial on the meta device would be cheaper,
    but leaves empty tensors in the caches that some of these networks share."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *size))
    except Exception:
        # The networks have no common error for a size they do not take.
        return False
    return True


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """The library reports and draws progress bars while it loads; what matters of it becomes an error here."""
    logger = transformers.utils.logging
    level, bars = logger.get_verbosity(), logger.is_progress_bar_enabled()
    logger.set_verbosity(logger.CRITICAL)
    logger.disable_progress_bar()
    try:
        yield
    finally:
        logger.set_verbosity(level)
        if bars:
            logger.enable_progress_bar()
