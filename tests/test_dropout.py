"""Dropout and stochastic depth: what is dropped, how often, and whose draws decide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.models.dropout import Dropout, Dropout2d, DropPath, draws_from, drop_path_rates
from robseg.models.vit import Attention
from robseg.seeding import image_generator

MODULES = {"elements": Dropout(0.25), "channels": Dropout2d(0.25), "samples": DropPath(0.25)}


@pytest.fixture(autouse=True)
def global_generator() -> None:
    torch.manual_seed(0)


def of_images(*names: str) -> list[torch.Generator]:
    return [image_generator(3, name, "dropout") for name in names]


@pytest.mark.parametrize("kind", MODULES)
def test_what_is_dropped_together_and_what_is_kept_of_the_mean(kind: str) -> None:
    ones = torch.ones(3000, 4, 2, 3)
    found = MODULES[kind].train()(ones)
    assert found.unique().tolist() == pytest.approx([0, 4 / 3])
    assert found.mean().item() == pytest.approx(1, abs=0.05)
    together = {"elements": found, "channels": found[:, :, :1, :1], "samples": found[:, :1, :1, :1]}[kind]
    assert torch.equal(found, together.expand_as(found))
    assert together.flatten(1).std(0).min() > 0.5
    assert torch.equal(MODULES[kind].eval()(ones), ones)


@pytest.mark.parametrize("kind", MODULES)
def test_an_images_draws_are_its_own_whatever_the_batch(kind: str) -> None:
    module, features = MODULES[kind].train(), torch.rand(4, 8, 5, 5) + 1
    before = torch.get_rng_state()
    with draws_from(of_images(*"abcd")):
        together = torch.cat([module(features), module(features)], 1)
    assert torch.equal(before, torch.get_rng_state())
    parts = []
    for index, name in enumerate("abcd"):
        with draws_from(of_images(name)):
            parts.append(torch.cat([module(features[index : index + 1]), module(features[index : index + 1])], 1))
    assert torch.equal(together, torch.cat(parts))
    with draws_from(of_images(*"abcd")), pytest.raises(ValueError, match="4 generators for a batch of 3"):
        module(features[:3])


@pytest.mark.parametrize("module", [nn.Dropout(1.0), nn.Dropout2d(1.0)])
def test_the_certain_case_is_torchs(module: nn.Module) -> None:
    ours = (Dropout if type(module) is nn.Dropout else Dropout2d)(1.0)
    features = torch.rand(2, 3, 4, 4)
    assert torch.equal(ours.train()(features), module.train()(features))


def test_attention_with_dropout_has_the_mean_of_attention_without() -> None:
    attention = Attention(8, 2, 0.3)
    attention.proj = nn.Identity()  # type: ignore[assignment]
    attention.proj_drop = Dropout(0.0)
    tokens = torch.randn(1, 5, 8)
    with torch.no_grad():
        wanted = attention.eval()(tokens)
        found = attention.train()(tokens.expand(20000, -1, -1))
    assert found.std(0).min() > 0.01
    assert ((found.mean(0) - wanted[0]).abs() < 5 * found.std(0) / 20000**0.5).all()


def test_attention_is_torchs_where_nothing_is_dropped() -> None:
    attention, tokens = Attention(8, 2, 1e-12).train(), torch.randn(2, 5, 8)
    query, key, value = attention.qkv(tokens).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mixed: Tensor = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(2, 5, 8)
    assert torch.allclose(attention(tokens), attention.proj(mixed), atol=1e-6)


def test_rates_grow_evenly() -> None:
    assert drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0]
