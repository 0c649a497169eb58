"""Checkpoint files of every shape people have, and every way in which they are wrong."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from robseg.errors import UserError
from robseg.loading.checkpoint import load_weights, read_checkpoint


def network(classes: int = 19, width: int = 8) -> nn.Module:
    torch.manual_seed(classes + width)
    model = nn.Module()
    model.body = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
    model.cls = nn.Conv2d(width, classes, 1)
    model.aux = nn.Conv2d(width, classes, 1)
    return model


def weights(**kwargs: int) -> dict[str, Tensor]:
    return network(**kwargs).state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
NAMED_OPTIMIZER = {"state": {f"p{i}": {"exp_avg": torch.zeros(1), "exp_avg_sq": torch.zeros(1)} for i in range(30)}}
EMA = {f"module.{name}": value + 1 for name, value in weights().items() if value.is_floating_point()}

NESTINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "raw": lambda w: w,
    "ordered": lambda w: OrderedDict(w),
    "state_dict": lambda w: {"epoch": 3, "state_dict": w, "optimizer": OPTIMIZER},
    "model": lambda w: {"model": w},
    "model_state_dict": lambda w: {"epoch": torch.tensor(3), "optim": NAMED_OPTIMIZER, "model_state_dict": w},
    "network": lambda w: {"network": w, "best_miou": np.float64(75.2), "seen": np.int64(7), "lr": np.float32(0.1)},
    "any key": lambda w: {"weights_v2": w, "rng": torch.get_rng_state()},
    "deep": lambda w: {"trainer": {"net": {"state_dict": w}}},
    "ema alone": lambda w: {"model_ema": w},
    "ema after": lambda w: {"model": w, "model_ema": EMA},
    "ema before": lambda w: {"state_dict_ema": {"n_averaged": torch.tensor(5), **EMA}, "state_dict": w},
    "parameters": lambda w: {"net": {name: nn.Parameter(v, requires_grad=False) for name, v in w.items()}},
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nesting", NESTINGS)
def test_the_weights_are_found(nesting: str, legacy: bool, tmp_path: Path) -> None:
    file = tmp_path / "a file.pth.tar"
    torch.save(NESTINGS[nesting](weights()), file, _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(file), weights())


@pytest.mark.parametrize("name", ["model.safetensors", "misnamed.pth"])
def test_safetensors(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(weights(), tmp_path / name)
    assert same(read_checkpoint(str(tmp_path / name)), weights())


class RunsCode:
    def __reduce__(self) -> Any:
        return os.mkdir, ("code-of-the-checkpoint-ran",)


def saved(value: Any, legacy: bool = False) -> Callable[[Path], object]:
    return lambda file: torch.save(value, file, _use_new_zipfile_serialization=not legacy)


def cut(share: float, legacy: bool = False) -> Callable[[Path], object]:
    def write(file: Path) -> None:
        torch.save(weights(), file, _use_new_zipfile_serialization=not legacy)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])

    return write


def flipped(file: Path) -> None:
    torch.save({"a": torch.zeros(5000)}, file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)


def cut_safetensors(file: Path) -> None:
    safetensors.torch.save_file(weights(), file)
    file.write_bytes(file.read_bytes()[:-9])


def directory(file: Path) -> None:
    file.mkdir()
    (file / "best.pth").touch()


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda file: None, "no checkpoint"),
    "directory": (directory, "is a directory.*best.pth"),
    "empty": (lambda file: file.touch(), "is empty"),
    "cut in half": (cut(0.5), "truncated or damaged"),
    "cut at the end": (cut(0.99), "truncated or damaged"),
    "old format, cut in half": (cut(0.5, legacy=True), "truncated or damaged"),
    "old format, cut at once": (cut(0.01, legacy=True), "truncated or damaged"),
    "one byte flipped": (flipped, "damaged.*checksum"),
    "safetensors, cut": (cut_safetensors, "truncated or damaged"),
    "random": (lambda file: file.write_bytes(np.random.default_rng(0).bytes(999)), "neither a PyTorch nor"),
    "text": (lambda file: file.write_text("epoch 1: miou 75.2"), "neither a PyTorch nor"),
    "web page": (lambda file: file.write_text("\n<!DOCTYPE html><html>"), "web page"),
    "pointer": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "numpy archive": (lambda file: np.savez(file.open("wb"), a=np.zeros(3)), "neither torch.save nor"),
    "plain pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "neither torch.save nor"),
    "whole module": (saved(nn.Linear(2, 2)), r"running code.*torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"),
    "arguments": (saved({"args": argparse.Namespace(), **weights()}), r"running code.*argparse\.Namespace"),
    "arguments, old format": (saved({"args": argparse.Namespace()}, legacy=True), r"argparse\.Namespace"),
    "hostile": (saved({"state_dict": weights(), "x": RunsCode()}), "running code.*mkdir"),
    "compiled": (lambda file: torch.jit.script(nn.Linear(2, 2)).save(str(file)), "TorchScript"),
    "list": (saved([1, 2]), "no weights.*a list"),
    "tensor": (saved(torch.zeros(3)), "no weights.*a Tensor"),
    "metrics alone": (saved({"epoch": 3, "miou": 0.5}), "no weights.*epoch, miou"),
    "nothing": (saved({}), "no weights.*a dict"),
    "optimiser alone": (saved({"optimizer": OPTIMIZER}), "no weights.*optimizer"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named_in_one_sentence(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = BAD_FILES[case]
    write(tmp_path / "model.pth")
    with pytest.raises(UserError, match=message) as caught:
        read_checkpoint("model.pth")
    assert "model.pth" in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    assert not Path("code-of-the-checkpoint-ran").exists()


def renamed(change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): value for name, value in weights().items()}


GOOD_STATES: dict[str, dict[str, Tensor]] = {
    "as they are": weights(),
    "DataParallel": renamed(lambda n: f"module.{n}"),
    "twice": renamed(lambda n: f"module.module.{n}"),
    "wrapped and wrapped": renamed(lambda n: f"module.base_model.model.network.{n}"),
    "compiled": renamed(lambda n: f"_orig_mod.module.{n}"),
    "compiled inside": renamed(lambda n: n.replace("body.", "body._orig_mod.")),
    "unheard of": renamed(lambda n: f"my_own.wrapper.{n}"),
    "no counters": {n: v for n, v in weights().items() if not n.endswith("num_batches_tracked")},
    "averaged": {"n_averaged": torch.tensor(7), **renamed(lambda n: f"module.{n}")},
    "half counters too": {n: v.half() for n, v in weights().items()},
    "bfloat16": {n: v.bfloat16() if v.is_floating_point() else v for n, v in weights().items()},
    "double": {n: v.double() if v.is_floating_point() else v for n, v in weights().items()},
}


@pytest.mark.parametrize("case", GOOD_STATES)
def test_good_states_load(case: str) -> None:
    module = network(width=8)
    for parameter in module.parameters():
        nn.init.constant_(parameter, 9)
    load_weights(module, GOOD_STATES[case], source="x.pth")
    for name, value in module.state_dict().items():
        assert value.dtype == weights()[name].dtype
        assert torch.allclose(value, weights()[name], atol=4e-3 if case in ("half counters too", "bfloat16") else 0)


def test_values_are_cast_to_the_dtype_of_the_module() -> None:
    module = network().bfloat16()
    load_weights(module, weights(), source="x.pth")
    assert torch.equal(module.cls.weight, weights()["cls.weight"].bfloat16())


def without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights().items() if name not in names}


BAD_STATES: dict[str, tuple[dict[str, Tensor], str]] = {
    "missing": (without("cls.weight", "cls.bias"), r"2 missing: cls\.weight, cls\.bias"),
    "missing with prefix": (
        {f"module.{n}": v for n, v in without("cls.bias").items()},
        r"entries 1 missing: cls\.bias\.",
    ),
    "left over": ({**weights(), "cls2.weight": torch.zeros(1)}, r"entries 1 not the model's: cls2\.weight\."),
    "left over beside the prefix": (
        {**renamed(lambda n: f"module.{n}"), "mean": torch.zeros(3), "module.std": torch.ones(3)},
        r"entries 2 not the model's: mean, module\.std",
    ),
    "many": (
        {**without("cls.weight"), **{f"extra.{i}": torch.zeros(1) for i in range(40)}},
        r"1 missing.*40 not the model's: extra\.0, extra\.1, extra\.2 and 37 more",
    ),
    "shapes": (weights(width=12), r"of another shape: body\.0\.weight \(\[12, 3, 3, 3\] in the file, \[8, 3, 3, 3\]"),
    "one bias": ({**weights(), "cls.bias": torch.zeros(19, 1)}, r"1 of another shape: cls\.bias \(\[19, 1\].*\[19\]"),
    "one norm": ({**weights(), "body.1.bias": torch.zeros(9)}, r"1 of another shape: body\.1\.bias \(\[9\].*\[8\]"),
    "classes": (weights(classes=21), r"has 21 classes, the model 19 .*choose with --classes"),
    "classes and more": ({**weights(classes=21), "extra": torch.zeros(1)}, r"1 not the model's: extra; 4 of another"),
    "another architecture": ({"conv1.weight": torch.zeros(1)}, "another architecture.*conv1.weight"),
    "nothing": ({}, "another architecture|missing"),
    "integers": ({**weights(), "cls.bias": torch.zeros(19, dtype=torch.int64)}, r"cls\.bias as int64.*float32"),
    "undefined": (
        {**weights(), "cls.bias": torch.full((19,), torch.nan)},
        r"undefined weights in 1 entries \(cls\.bias\)",
    ),
    "twice": ({**weights(), "_orig_mod.cls.bias": torch.zeros(19)}, "twice"),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_bad_states_are_one_error_and_leave_the_network_alone(case: str) -> None:
    state, message = BAD_STATES[case]
    module = network(width=8)
    nn.init.constant_(module.cls.weight, 9)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UserError, match=message) as caught:
        load_weights(module, state, source="x.pth")
    assert "x.pth" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "classes" not in str(caught.value) or case == "classes"
    assert same(module.state_dict(), before)


def test_classes_are_recognised_where_they_are_not_the_first_dimension() -> None:
    def scores(classes: int) -> nn.Module:
        module = nn.Module()
        module.cls_emb = nn.Parameter(torch.zeros(1, classes, 4))
        module.mask_norm = nn.LayerNorm(classes)
        return module

    with pytest.raises(UserError, match="151 classes, the model 150"):
        load_weights(scores(150), scores(151).state_dict(), source="x.pth")


@pytest.mark.parametrize("stored", [(1, 197, 4), (1, 1025, 4)])
def test_a_table_of_positions_is_not_mistaken_for_classes(stored: tuple[int, ...]) -> None:
    module = nn.Module()
    module.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
    with pytest.raises(UserError, match=re.escape(str(list(stored)))) as caught:
        load_weights(module, {"pos_embed": torch.zeros(stored)}, source="x.pth")
    assert "classes" not in str(caught.value)


def test_what_is_left_over_is_ignored_only_where_allowed() -> None:
    state = {
        **renamed(lambda n: f"module.{n}"),
        "module.cls2.weight": torch.zeros(1),
        "module.mask1.4.bias": torch.zeros(2),
        "mean": torch.zeros(3),
    }
    module = network(width=8)
    with pytest.raises(UserError, match=r"1 not the model's: module\.mask1\.4\.bias"):
        load_weights(module, state, source="x.pth", ignore=("cls2.", "mean"))
    load_weights(module, state, source="x.pth", ignore=("cls2.", "module.mask1.", "mean"))
    with pytest.raises(UserError, match=r"1 missing: cls\.bias"):
        load_weights(module, without("cls.bias"), source="x.pth", ignore=("cls.",))
