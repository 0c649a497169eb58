"""All attacks in one table, against a model whose optimum is known in closed form, and at other batch sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from robseg.attacks.apgd import apgd
from robseg.attacks.catalogue import ATTACKS, AttackConfig, find_attacks, protocol_of
from robseg.attacks.objectives import OBJECTIVES
from robseg.attacks.pgd import bim, fgsm, pgd
from robseg.attacks.problem import check_perturbation
from robseg.attacks.sea import sea
from robseg.attacks.threat import L2, THREATS, Linf
from robseg.errors import UserError
from robseg.models.wrapper import SegmentationModel
from tiny import Tiny, tiny_problem

EPS = 8 / 255
CONFIGS = [
    *(AttackConfig(f"apgd-{o}", "apgd", o, 12, radius="constant") for o in OBJECTIVES),
    *(AttackConfig(f"red-{o}", "apgd", o, 12, radius="reduced", tracked="ce") for o in OBJECTIVES),
    *(AttackConfig(f"pgd-{o}", "pgd", o, 12, alpha=2 / 255) for o in OBJECTIVES),
    AttackConfig("restarts", "apgd", "ce", 5, restarts=3),
    AttackConfig("pgd-restarts", "pgd", "ce", 12, restarts=3, alpha=2 / 255),
    AttackConfig("pgd-last", "pgd", "ce", 12, alpha=2 / 255, keep="last"),
    ATTACKS["fgsm"],
    ATTACKS["bim"],
]


class Linear(nn.Module):
    """Two classes, one weight per channel: the best perturbation moves every channel of a pixel by eps."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def margin(self, images):
        return (self.weight.view(1, 3, 1, 1) * (images - 0.5)).sum(1)

    def forward(self, images):
        z = self.margin(images)
        return torch.stack([z, -z], 1)


def linear_problem(seed=0, batch=4):
    generator = torch.Generator().manual_seed(seed)
    # Away from 0 and 1, so that clipping never binds.
    images = 0.5 + 0.08 * (2 * torch.rand(batch, 3, 9, 11, generator=generator, dtype=torch.float64) - 1)
    model = Linear()
    labels = (model.margin(images) < 0).long().detach()
    labels[:, 0, :4] = 255
    return model, images, labels


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
def test_linear_model_linf_optimum(config):
    model, images, labels = linear_problem()
    found = config.run(model, images, labels, eps=EPS, class_weights=torch.tensor([0.5, 0.5]))
    reach = EPS * model.weight.abs().sum()
    counted = labels != 255
    survives = (model.margin(images).abs() > reach) & counted
    optimum = survives.flatten(1).sum(1) / counted.flatten(1).sum(1)
    if config.name == "bim":
        # Two steps of 0.01 do not cross the ball.
        assert (found.accuracy >= optimum).all()
    else:
        torch.testing.assert_close(found.accuracy, optimum.double())


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.method == "apgd"], ids=lambda c: c.name)
def test_linear_model_l2_never_beats_the_optimum(config):
    model, images, labels = linear_problem()
    eps = 0.4
    found = config.run(model, images, labels, eps=eps, threat="l2", class_weights=torch.tensor([0.5, 0.5]))
    counted = labels != 255
    cost = (model.margin(images).square() / model.weight.square().sum()).detach()
    for row in range(len(images)):
        cheapest = cost[row][counted[row]].sort().values.cumsum(0)
        flippable = int((cheapest <= eps**2).sum())
        right = round(found.accuracy[row].item() * int(counted[row].sum()))
        assert right >= int(counted[row].sum()) - flippable
        assert right < int(counted[row].sum())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("threat", sorted(THREATS))
@pytest.mark.parametrize("eps", [0.0, 0.5 / 255, EPS, 1.0])
def test_results_are_valid_and_the_model_is_left_as_it_was(config, threat, eps):
    network, images, labels = tiny_problem(7, 4, (2, 16, 20))
    images[:, :, :4] = images[:, :, :4].round()
    network.train()
    network.head.eval()
    network.conv1.bias.requires_grad_(False)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    eps = eps * 50 if threat == "l2" else eps
    found = config.run(network, images, labels, eps=eps, threat=threat, class_weights=weights)
    check_perturbation(images, found.adversarial, eps, THREATS[threat])
    if eps == 0:
        assert torch.equal(found.adversarial, images)
    assert network.training
    assert not network.head.training
    assert network.conv1.weight.requires_grad
    assert not network.conv1.bias.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        again = (network.eval()(found.adversarial).argmax(1) == labels).double().flatten(1).mean(1)
    torch.testing.assert_close(found.accuracy, again)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_changes_nothing(config, dtype):
    network, images, labels = tiny_problem(3, 5, (8, 16, 16))
    network, images = SegmentationModel(network.to(dtype)), images.to(dtype)
    labels[2, :3] = 255
    labels[5] = 255
    # An image that is wrong everywhere leaves at once, one that is all void never enters.
    with torch.no_grad():
        labels[6] = (network(images[6:7]).argmax(1)[0] + 1) % 5
    ids = [f"image {i}" for i in range(8)]
    weights = torch.rand(8, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)

    def run(size, order):
        parts = [
            config.run(
                network,
                images[rows],
                labels[rows],
                eps=EPS,
                class_weights=weights[rows],
                image_ids=[ids[i] for i in rows],
            )
            for rows in (order[k : k + size] for k in range(0, 8, size))
        ]
        back = torch.tensor(order).argsort()
        return (torch.cat([p.adversarial for p in parts])[back], torch.cat([p.accuracy for p in parts])[back],
                torch.cat([p.forward_passes for p in parts])[back])  # fmt: skip

    whole = run(8, list(range(8)))
    for size, order in [(1, list(range(8))), (3, [4, 1, 7, 0, 6, 2, 5, 3])]:
        for ours, theirs in zip(run(size, order), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("config", CONFIGS[::5], ids=lambda c: c.name)
def test_ignoring_a_class_is_the_same_as_ignoring_255(config):
    network, images, labels = tiny_problem(3, 5, (2, 16, 16))
    assert (labels == 2).any()
    weights = torch.ones(5)
    ours = config.run(network, images, labels, eps=EPS, class_weights=weights, ignore_index=2)
    theirs = config.run(network, images, labels.where(labels != 2, 255), eps=EPS, class_weights=weights)
    assert torch.equal(ours.adversarial, theirs.adversarial)
    assert torch.equal(ours.accuracy, theirs.accuracy)


def test_passes_are_n_plus_one_and_n():
    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    calls = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    found = apgd(network, images, labels, eps=EPS, steps=10)
    assert calls == [2] * 11
    assert found.forward_passes.tolist() == [11, 11]
    assert found.backward_passes.tolist() == [10, 10]
    calls.clear()
    found = apgd(network, images, labels, eps=EPS, steps=10, radius="reduced")
    assert (len(calls), found.forward_passes.tolist(), found.backward_passes.tolist()) == (13, [13, 13], [10, 10])
    found = pgd(network, images, labels, eps=EPS, steps=10, alpha=0.01)
    assert (found.forward_passes.tolist(), found.backward_passes.tolist()) == ([11, 11], [10, 10])


def test_images_that_are_lost_leave_and_void_ones_are_reported():
    network, images, labels = tiny_problem(1, 4, (3, 16, 16))
    with torch.no_grad():
        labels[0] = (network(images[:1]).argmax(1)[0] + 1) % 4
    labels[1] = 255
    for found in (
        apgd(network, images, labels, eps=EPS, steps=8, random_start=False),
        pgd(network, images, labels, eps=EPS, steps=8, alpha=0.01, random_start=False),
    ):
        assert found.accuracy[0] == 0
        assert math.isnan(found.accuracy[1])
        assert 0 < found.accuracy[2] < 1
        assert torch.equal(found.adversarial[1], images[1])
        assert found.forward_passes[1] == 0
    assert apgd(network, images, labels, eps=EPS, steps=8, random_start=False).forward_passes[0] == 1


def test_random_numbers_belong_to_the_image():
    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    same = [
        apgd(network, images, labels, eps=EPS, steps=2, image_ids=["a", "b"], seed=s).adversarial for s in (0, 0, 1)
    ]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])
    torch.rand(3)
    swapped = apgd(network, images.flip(0), labels.flip(0), eps=EPS, steps=2, image_ids=["b", "a"]).adversarial
    assert torch.equal(swapped.flip(0), same[0])


def test_more_restarts_are_never_worse():
    network, images, labels = tiny_problem(4, 5, (3, 16, 16))
    one, four = (apgd(network, images, labels, eps=EPS, steps=4, restarts=n).accuracy for n in (1, 4))
    assert (four <= one).all()


def test_given_start_is_projected_and_used():
    network, images, labels = tiny_problem(4, 5, (2, 16, 16))
    strong = apgd(network, images, labels, eps=EPS, steps=30)
    start = images + 3 * (strong.adversarial - images)
    found = apgd(network, images, labels, eps=EPS, steps=1, random_start=False, start=start)
    assert (found.accuracy <= apgd(network, images, labels, eps=EPS, steps=1, random_start=False).accuracy).all()
    check_perturbation(images, found.adversarial, EPS, Linf())


class Breaks(Tiny):
    """NaN as soon as an image has left its clean value by much."""

    def __init__(self, network, images, limit):
        super().__init__(4)
        self.load_state_dict(network.state_dict())
        self.double()
        self.clean, self.limit = images, limit

    def forward(self, x):
        logits = super().forward(x)
        moved = (x - self.clean).abs().flatten(1).mean(1) > self.limit
        return logits / torch.where(moved, torch.nan, 1.0).view(-1, 1, 1, 1)


@pytest.mark.parametrize("config", [CONFIGS[0], CONFIGS[20]], ids=lambda c: c.name)
def test_nan_points_are_never_a_result(config):
    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    broken = Breaks(network, images, 0.6 * EPS)
    found = config.run(broken, images, labels, eps=EPS, class_weights=torch.ones(4))
    assert (found.invalid_points > 0).all()
    with torch.no_grad():
        assert broken.eval()(found.adversarial).isfinite().all()
    assert found.best_loss.isfinite().all()


def test_a_model_without_gradient_is_survived():
    class Cut(Tiny):
        def forward(self, x):
            return super().forward(x.detach())

    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    cut = Cut(4).double()
    cut.load_state_dict(network.state_dict())
    assert apgd(cut, images, labels, eps=EPS, steps=3).adversarial.isfinite().all()


GOOD = {"eps": EPS, "steps": 2}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.rand(2, 3, 16)}, "images must be"),
        ({"images": torch.rand(2, 1, 16, 16)}, "images must be"),
        ({"images": torch.randint(0, 255, (2, 3, 16, 16))}, "images must be"),
        ({"images": 255 * torch.rand(2, 3, 16, 16)}, r"\[0, 1\]"),
        ({"images": torch.full((2, 3, 16, 16), torch.nan)}, r"\[0, 1\]"),
        ({"labels": torch.zeros(2, 8, 8, dtype=torch.int64)}, "labels must be"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"steps": 0}, "steps"),
        ({"restarts": 0}, "restarts"),
        ({"radius": "shrinking"}, "radius"),
        ({"restarts": 2, "random_start": False}, "restarts"),
        ({"start": torch.rand(2, 3, 16, 16)}, "random_start"),
        ({"objective": "mce-bal"}, "class_weights"),
        ({"image_ids": ["only one"]}, "image ids"),
    ],
)
def test_wrong_arguments(change, words):
    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    arguments = {**GOOD, **change}
    images, labels = arguments.pop("images", images), arguments.pop("labels", labels)
    with pytest.raises(ValueError, match=words):
        apgd(network, images, labels, **arguments)


def test_coarse_logits_are_an_error_that_names_the_wrapper():
    network, images, labels = tiny_problem(1, 4, (1, 16, 16))
    with pytest.raises(ValueError, match="SegmentationModel"):
        fgsm(lambda x: network(x)[:, :, ::2, ::2], images, labels, eps=EPS)


@pytest.mark.parametrize("threat", [Linf(), L2()], ids=lambda t: t.name)
def test_threat_models(threat):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 8, 8, generator=generator)
    images[0] = images[0].round()
    for eps in (0.0, 0.01, 0.3, 5.0):
        moved = images + torch.randn(images.shape, generator=generator)
        inside = threat.project(images, moved, eps)
        check_perturbation(images, inside, eps, threat)
        torch.testing.assert_close(threat.project(images, inside, eps), inside, rtol=0, atol=1e-6)
        generators = [torch.Generator().manual_seed(i) for i in range(5)]
        check_perturbation(images, threat.random_point(images, eps, generators), eps, threat)
    step = threat.steepest(torch.randn(images.shape, generator=generator) * 1e-30)
    torch.testing.assert_close(threat.size(step), torch.ones(5))
    assert (threat.steepest(torch.zeros_like(images)) == 0).all()


@pytest.mark.parametrize("threat", [Linf(), L2()], ids=lambda t: t.name)
@pytest.mark.parametrize("levels", [0.0, 0.5, 1.0, 4.0, 7.3])
def test_rounding_to_8_bit_stays_in_the_ball(threat, levels):
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(0, 256, (4, 3, 8, 8), generator=generator).float() / 255
    eps = levels / 255 * (10 if threat.name == "l2" else 1)
    moved = threat.project(clean, clean + torch.randn(clean.shape, generator=generator), eps)
    rounded = threat.round_to_8bit(clean, moved, eps)
    check_perturbation(clean, rounded, eps, threat)
    torch.testing.assert_close(255 * rounded, (255 * rounded).round(), rtol=0, atol=1e-4)
    if levels >= 4:
        assert not torch.equal(rounded, clean)


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        (lambda x: x + 2 * EPS * (0.5 - x).sign(), "exceeds"),
        (lambda x: x - 1, "leave"),
        (lambda x: x * torch.nan, "NaN"),
    ],
)
def test_check_perturbation_catches(moved, words):
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError, match=words):
        check_perturbation(images, moved(images), EPS, Linf())


def test_sea_takes_the_worst_per_image_and_names_its_weights():
    network, images, labels = tiny_problem(5, 5, (3, 16, 16))
    found = sea(network, images, labels, eps=EPS, steps=6)
    assert list(found.attacks) == ["apgd-mce-bal", "apgd-mce", "apgd-js"]
    table = torch.stack([attack.accuracy for attack in found.attacks.values()])
    torch.testing.assert_close(found.accuracy, table.min(0).values)
    with torch.no_grad():
        right = (network(found.adversarial).argmax(1) == labels).double().flatten(1).mean(1)
    torch.testing.assert_close(found.accuracy, right)
    assert found.weights_source == "evaluated labels"
    given = sea(network, images, labels, eps=EPS, steps=2, training_pixels=torch.tensor([5, 1, 0, 2, 2]))
    assert given.weights_source == "training labels"
    assert list(sea(network, images, labels, eps=EPS, steps=2, attacks="sea-v1").attacks) == [
        "apgd-mce", "apgd-segpgd", "apgd-js", "apgd-msl",
    ]  # fmt: skip
    labels[:] = 255
    assert sea(network, images, labels, eps=EPS, steps=2).accuracy.isnan().all()


def test_names_options_and_protocols():
    published = find_attacks(["sea"])
    assert [config.steps for config in published] == [300, 300, 300]
    assert all(c.radius == "reduced" and c.tracked == "ce" and c.random_start for c in published)
    assert protocol_of(published, "linf") == ("SEA (2306.12941v2)", [])
    name, deviations = protocol_of(find_attacks(["sea"], steps=100), "l2")
    assert name.startswith("SEA")
    assert deviations == ["norm is l2, not linf", "steps is 100, not 300"]
    assert protocol_of(find_attacks(["pgd"]), "linf") == ("custom", [])
    (config,) = find_attacks(["pgd-js?steps=7&alpha=2&start=clean&keep=last"])
    assert (config.steps, config.random_start, config.keep) == (7, False, "last")
    assert config.alpha == pytest.approx(2 / 255)
    assert find_attacks(["fgsm"], steps=50)[0].steps == 1
    assert len(find_attacks(["sea", "sea-v1", "apgd-js"])) == 5


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sae"], "did you mean sea"),
        (["apgd-mcebal"], "apgd-mce-bal"),
        (["nothing-like-it-at-all"], "known:"),
        (["pgd?stepz=3"], "stepz"),
        (["pgd?steps=many"], "not a number"),
        (["pgd?steps=0"], "at least 1"),
        (["pgd?radius=red"], "constant or reduced"),
        (["pgd?alpha=0"], "above 0"),
        (["pgd?restarts=2&start=clean"], "restarts"),
        (["pgd?objective=mcee"], "mce"),
        (["pgd:here"], "takes no ':'"),
        ([], "No attack"),
    ],
)
def test_wrong_names(names, words):
    with pytest.raises(UserError, match=words):
        find_attacks(names)


def test_bim_defaults_are_those_of_the_ddc_at_test():
    network, images, labels = tiny_problem(1, 4, (2, 16, 16))
    found = bim(network, images, labels)
    assert (found.adversarial - images).abs().max().item() == pytest.approx(0.02)
