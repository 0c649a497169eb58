"""Rates per step, parameter groups and averaged weights."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robseg.errors import UserError
from robseg.models.architectures import ARCHITECTURES
from robseg.models.small_unet import small_unet
from robseg.training.ema import averaged
from robseg.training.groups import BACKBONES, parameter_groups
from robseg.training.schedule import Schedule, eps_share

FIGURES = json.loads((Path(__file__).parent / "fixtures" / "training.json").read_text())["schedule"]
PUBLISHED = {
    "warmup_poly": Schedule(1e-3, 1000, warmup=100, warmup_ratio=1e-5, power=1.0),
    "poly": Schedule(0.01, 1000, power=0.9, count_from=1),
}


@pytest.mark.parametrize("title", FIGURES)
def test_rates_are_the_published_ones(title: str) -> None:
    schedule = PUBLISHED[title.split()[0]]
    for step, rate in FIGURES[title].items():
        assert schedule.rate(int(step)) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
@pytest.mark.parametrize("floor", [0.0, 1e-5])
@pytest.mark.parametrize("count_from", [0, 1])
def test_rates_rise_to_the_peak_and_fall_to_the_floor(warmup: int, power: float, floor: float, count_from: Any) -> None:
    schedule = Schedule(2e-3, 40, warmup=warmup, power=power, floor=floor, count_from=count_from)
    rates = [schedule.rate(step) for step in range(40)]
    top = min(warmup, 39) - (count_from if warmup else 0)
    top = max(top, 0)
    assert max(rates) <= 2e-3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True) or warmup == 40
    assert min(rates) >= (floor if warmup == 0 else min(floor, 2e-8))
    if warmup < 39:
        assert max(rates) == pytest.approx(2e-3, rel=0.06)
        last = floor + (2e-3 - floor) * ((1 - count_from) / (40 - warmup)) ** power
        assert rates[-1] == pytest.approx(last, abs=1e-18)
    for step in (-1, 40):
        with pytest.raises(ValueError, match=r"0\.\.39"):
            schedule.rate(step)


def test_segmenters_rates() -> None:
    """SGD 2e-3, power 0.9, to a floor of 1e-5: half-way and at the end."""
    schedule = Schedule(2e-3, 1000, power=0.9, floor=1e-5)
    assert schedule.rate(0) == 2e-3
    assert schedule.rate(500) == pytest.approx(1e-5 + 1.99e-3 * 0.5**0.9)
    assert schedule.rate(999) == pytest.approx(1e-5 + 1.99e-3 * 0.001**0.9)


def test_one_step_and_all_warm_up_are_possible() -> None:
    assert Schedule(1.0, 1).rate(0) == 1.0
    assert Schedule(1.0, 1, warmup=1).rate(0) == 1e-5
    assert math.isfinite(Schedule(1.0, 3, warmup=3, count_from=1).rate(2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"steps": 0}, "steps"),
        ({"warmup": 11}, "0 to all 10 steps"),
        ({"warmup": -1}, "warmup"),
        ({"warmup_ratio": 1.5}, "warmup_ratio"),
        ({"power": 0.0}, "power"),
        ({"floor": 2.0}, "floor"),
        ({"count_from": 2}, "count_from"),
    ],
)
def test_wrong_schedules(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Schedule(**{"lr": 1.0, "steps": 10, **change})


def test_eps_is_warmed_up() -> None:
    assert [eps_share(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert eps_share(0, 0) == 1


# Groups


def by_name(network: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    groups = parameter_groups(network, weight_decay=0.05, **options)
    names = dict(network.named_parameters())
    for group in groups:
        assert [names[name] for name in group["names"]] == group["params"] or all(
            names[name] is parameter for name, parameter in zip(group["names"], group["params"], strict=True)
        )
    found = {name: (group["weight_decay"], group["rate"]) for group in groups for name in group["names"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    return found


@pytest.mark.parametrize(
    "name", ["upernet_convnext_t_cvst", "segmenter_vit_s", "pspnet50", "pspnet50_ddcat", "small_unet"]
)
def test_one_dimensional_and_norm_parameters_do_not_decay(name: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name](num_classes=7)
    parameters = dict(network.named_parameters())
    found = by_name(network)
    assert found.keys() == {key for key, parameter in parameters.items() if parameter.requires_grad}
    for key, (decay, rate) in found.items():
        assert (decay == 0) == (parameters[key].ndim <= 1)
        assert rate == 1
    assert {decay for decay, _ in by_name(network, decay_all=True).values()} == {0.05}


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("pspnet50", r"ppm\.|cls\.|aux\."),
        ("pspnet50_ddcat", r"ppm\.|cls1\.|cls2\.|mask1\.|aux_cls1\."),
        ("deeplabv3_50", r"aspp\.|cls\.|aux\."),
        ("upernet_convnext_t_cvst", r"decode_head\.|auxiliary_head\."),
        ("segmenter_vit_s", r"decoder\."),
    ],
)
def test_new_layers_learn_faster(name: str, new: str) -> None:
    with torch.device("meta"):
        network = ARCHITECTURES[name](num_classes=7)
    found = by_name(network, new_rate=10.0, decay_all=True)
    assert {key for key, (_, rate) in found.items() if rate == 10} == {key for key in found if re.match(new, key)}
    assert any(key.startswith(BACKBONES) for key in found)


def test_norms_of_more_dimensions_frozen_and_shared_parameters() -> None:
    network = nn.ModuleDict(
        {"norm": nn.LayerNorm((4, 5)), "a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "frozen": nn.Linear(3, 3)}
    )
    network["b"].weight = network["a"].weight
    network["frozen"].requires_grad_(False)
    found = by_name(network)
    assert found == {
        "norm.weight": (0, 1), "norm.bias": (0, 1), "a.weight": (0.05, 1), "a.bias": (0, 1), "b.bias": (0, 1),
    }  # fmt: skip
    network.requires_grad_(False)
    with pytest.raises(UserError, match="requires_grad"):
        parameter_groups(network, weight_decay=0.05)


def test_new_layers_need_a_backbone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1))
    with pytest.raises(UserError, match="Sequential has no parameters"):
        parameter_groups(network, weight_decay=0.0, new_rate=10.0)
    found = by_name(network, new_rate=10.0, backbone=("0.",))
    assert {name: rate for name, (_, rate) in found.items()} == {
        "0.weight": 1,
        "0.bias": 1,
        "1.weight": 10,
        "1.bias": 10,
    }


# Averaged weights


def moved(network: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(by)
        for buffer in network.buffers():
            buffer.add_(1)


def test_the_average_follows_the_weights() -> None:
    network = small_unet(6, width=4).double()
    average = averaged(network, 0.9)
    expected = {name: p.detach().clone() for name, p in network.named_parameters()}
    for n in range(200):
        moved(network, 0.01 * (n % 7 - 2))
        average.update_parameters(network)
        share = 0 if n == 0 else min(0.9, (1 + n) / (10 + n))
        for name, parameter in network.named_parameters():
            expected[name] = share * expected[name] + (1 - share) * parameter.detach()
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    for ours, theirs in zip(average.module.buffers(), network.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not average.module.training
    assert not any(a is b for a, b in zip(average.parameters(), network.parameters(), strict=True))


def test_an_average_goes_on_from_its_state() -> None:
    network = small_unet(6, width=4)
    one, two = averaged(network, 0.99), averaged(small_unet(6, width=4), 0.99)
    for step in range(6):
        if step == 3:
            two.load_state_dict(copy.deepcopy(one.state_dict()))
        moved(network, 0.1 * step)
        for average in (one, two)[: 2 if step >= 3 else 1]:
            average.update_parameters(network)
    for ours, theirs in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, math.nan])
def test_wrong_decays(decay: float) -> None:
    with pytest.raises(UserError, match=r"0\.999"):
        averaged(small_unet(6, width=4), decay)
