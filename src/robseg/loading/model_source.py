"""From what the user names to a model under attack: a folder, a name, a file, a library's model, or a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from robseg.errors import UserError, unknown_name
from robseg.home import home
from robseg.loading.checkpoint import WEIGHT_FILES, load_weights
from robseg.loading.factory import open_factory
from robseg.loading.huggingface import open_huggingface
from robseg.loading.identify import identify
from robseg.loading.libraries import TORCHVISION_IGNORE, open_smp, open_torchvision
from robseg.loading.model_folder import read_model_folder, read_weights
from robseg.loading.places import stored_weights
from robseg.loading.programs import open_program, program_kind
from robseg.models.architectures import ARCHITECTURES
from robseg.models.published import PUBLISHED
from robseg.models.wrapper import Precision, SegmentationModel
from robseg.spec import Spec, parse_spec

DEMO_MODELS = ("demo-plain", "demo-robust")

FORMS = ("hf", "torchvision", "smp", "torchscript", "export", "onnx")
"""What may stand before the colon of a model that is no function of the user's."""

TRAINABLE = ("hf", "torchvision", "smp")
"""Those of them that build a network; the others are programs."""


def open_model(
    name: str,
    *,
    num_classes: int,
    checkpoint: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    precision: Precision = "fp32",
    fresh: bool = False,
) -> SegmentationModel:
    """The model that MODEL names, with its weights.

    name: a folder of a robseg training run; a named model (`known_models`); a checkpoint of a published model, found
        out by its entries; hf:, torchvision:, smp:, torchscript: or export: and what the functions of that name take;
        or "package.module:factory", found from the current folder, where factory gives a torch.nn.Module (or is one)
        and is called with the number of classes when it takes one.
    checkpoint: a file of weights, a URL or hf:OWNER/NAME/FILE (see `fetch`), or the folder of a robseg training, which
        replaces those the model came with.
    mean, std: normalisation of the input; replaces the model's own.
    fresh: models that come without weights have fresh ones, drawn from torch's global generator.

    Raises UserError for everything that does not fit, in one sentence.
    """
    if checkpoint is None:
        name, checkpoint = _with_weights(name)
    model = _build(name, num_classes, checkpoint is not None, mean is not None, fresh)
    if checkpoint is not None:
        model = _load(model, name, checkpoint)
    if mean is not None or std is not None:
        model = SegmentationModel(model.network, mean=mean, std=std, output=model.output)
    model.set_precision(precision)
    return model


def demo_folder(name: str) -> Path:
    """Where the model `name` of `robseg demo` is kept."""
    return home() / "models" / name


def known_models() -> list[str]:
    """The names that `open_model` knows: the demo's models, published ones and bare architectures."""
    return [*DEMO_MODELS, *PUBLISHED, *ARCHITECTURES]


def _with_weights(name: str) -> tuple[str, str | None]:
    """The model's name and its file, where the file tells the model or the model's file is known."""
    path = Path(name)
    if name in PUBLISHED:
        stored = stored_weights(name)
        if stored is None:
            entry = PUBLISHED[name]
            raise UserError(
                f"The weights of '{name}' are not on this machine; fetch '{entry.file}' from {entry.page} and give the "
                f"file with --checkpoint, or put it at {home() / 'models' / name}.pth."
            )
        return name, str(stored)
    if path.is_file():
        kind = program_kind(path)
        # As after a colon, a '?' in a file's name would begin options.
        return (f"{kind}:{name.replace('?', '%3F')}", None) if kind else (identify(path), name)
    return name, None


def _build(
    name: str, num_classes: int, has_checkpoint: bool, has_normalisation: bool, fresh: bool
) -> SegmentationModel:
    if name in DEMO_MODELS:
        if not (demo_folder(name) / "model.yaml").is_file():
            raise UserError(f"The model '{name}' is made by `robseg demo`, which has not run yet on this machine.")
        return _from_folder(demo_folder(name))
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return SegmentationModel(published.build(published.num_classes), mean=published.mean, std=published.std)
    if name in ARCHITECTURES:
        if not has_checkpoint and not fresh:
            raise UserError(f"The model '{name}' comes without weights; give its file with --checkpoint.")
        return SegmentationModel(ARCHITECTURES[name](num_classes=num_classes))
    if Path(name).is_dir():
        if (Path(name) / "config.json").is_file() and not (Path(name) / "model.yaml").is_file():
            raise UserError(f"'{name}' is no folder of a robseg training but of another library; name it as hf:{name}.")
        return _from_folder(Path(name))
    before, colon, after = name.partition(":")
    if colon and before in FORMS:
        return _foreign(parse_spec(name), num_classes, has_checkpoint, has_normalisation, fresh)
    if colon and after and "/" not in before:
        return open_factory(before, after, num_classes)
    if "/" in name or name.startswith(".") or name.endswith(WEIGHT_FILES):
        raise UserError(f"'{name}' is no folder and no file; MODEL is one of these, a name, or package.module:factory.")
    raise unknown_name("model", name, known_models())


def _foreign(
    spec: Spec, num_classes: int, has_checkpoint: bool, has_normalisation: bool, fresh: bool
) -> SegmentationModel:
    if spec.name == "hf":
        return open_huggingface(spec, has_checkpoint, has_normalisation)
    if spec.name == "torchvision":
        return open_torchvision(spec, num_classes, has_checkpoint or fresh)
    if spec.name == "smp":
        return open_smp(spec, num_classes, has_checkpoint or fresh)
    if has_checkpoint:
        raise UserError(f"A program such as {spec.name}:{spec.root} holds its weights; leave --checkpoint away.")
    return open_program(spec)


def _load(model: SegmentationModel, name: str, checkpoint: str) -> SegmentationModel:
    """The model with the weights of a file, and with the normaliser that the file may hold beside them."""
    state, normaliser = read_weights(checkpoint, model.network)
    ignore = PUBLISHED[name].ignore if name in PUBLISHED else ()
    if name.startswith("torchvision:"):
        ignore = TORCHVISION_IGNORE
    load_weights(
        model.network, state, source=checkpoint, ignore=ignore,
        advice=lambda stored, wanted: _other_classes(name, stored, wanted),
    )  # fmt: skip
    if normaliser is None:
        return model
    return SegmentationModel(model.network, mean=normaliser.mean, std=normaliser.std, output=model.output)


def _other_classes(name: str, stored: int, wanted: int) -> str:
    """What to do with a checkpoint of another number of classes."""
    if name not in PUBLISHED:
        return (
            f"take data with {stored} classes (--classes {stored} where they do not say how many), or a checkpoint of "
            f"{wanted}"
        )
    architecture = PUBLISHED[name].architecture
    same = [n for n, m in PUBLISHED.items() if (m.architecture, m.num_classes) == (architecture, stored)]
    if same:
        return f"name the model {same[0]}, which has {stored}"
    return f"name the bare architecture {architecture}, with data of {stored} classes"


def _from_folder(path: Path) -> SegmentationModel:
    folder = read_model_folder(path)
    return SegmentationModel(folder.network, mean=folder.mean, std=folder.std)
