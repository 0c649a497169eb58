"""The attack inside training, and what each method makes of a batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robseg.attacks.pgd import ascend, pgd
from robseg.attacks.problem import check_perturbation
from robseg.attacks.threat import THREATS
from robseg.data.sets.shapes import Shapes
from robseg.errors import UserError
from robseg.models.architectures import ARCHITECTURES
from robseg.models.ddcat import DDCATOutputs
from robseg.training.inner_attack import AttackSettings, perturb
from robseg.training.methods import METHODS, MethodSettings, batch_loss, divide, pixel_loss, training_step
from robseg.training.trainee import Outputs, Trainee, read_outputs
from tiny import tiny_problem

KEYS = ["a/epoch 0", "b/epoch 0", "c/epoch 0", "d/epoch 0"]
ATTACKS = [
    AttackSettings(steps=3),
    AttackSettings(steps=2, random_start=True, objective="mce"),
    AttackSettings("fgsm", steps=1, random_start=True),
    AttackSettings("fgsm", steps=1),
    AttackSettings("apgd", steps=3, objective="js"),
    AttackSettings(steps=2, bf16=True, objective="segpgd"),
]
STARTING_AT_RANDOM = [a for a in ATTACKS if a.random_start]


class Branched(nn.Module):
    """A network with batch norm, dropout, an auxiliary classifier and, on demand, DDC-AT's branches."""

    def __init__(self, classes: int = 6, branches: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.3))
        self.main, self.auxiliary = nn.Conv2d(12, classes, 1), nn.Conv2d(12, classes, 1)
        self.adversarial, self.mask = nn.Conv2d(12, classes, 1), nn.Conv2d(12, 2, 1)
        self.branches = branches

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.training_outputs(images) if self.training else self.main(self.body(images))

    def training_outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.body(images)
        main, auxiliary = self.main(features), self.auxiliary(features)
        if not self.branches:
            return main, auxiliary
        mask = self.mask(features)
        joined = torch.where(mask.argmax(1, keepdim=True) == 1, self.adversarial(features), main)
        return DDCATOutputs(joined, mask, auxiliary, main)


def trainee(branches: bool = False, seed: int = 0) -> Trainee:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Trainee(Branched(branches=branches), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2)).train()


def batch(count: int = 4) -> tuple[Tensor, Tensor]:
    samples = [Shapes(count=count, size=32, split="train")[i] for i in range(count)]
    return torch.stack([s.image for s in samples]), torch.stack([s.label for s in samples])


@pytest.fixture
def still() -> Iterator[None]:
    """Dropout draws from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


# The attack


@pytest.mark.parametrize("settings", ATTACKS, ids=str)
def test_the_attack_stays_in_its_ball_and_raises_the_loss(settings: AttackSettings) -> None:
    network, (images, labels) = trainee(), batch()
    kept = images.clone()
    found = perturb(network, images, labels, settings, seed=0, keys=KEYS)
    assert torch.equal(images, kept)
    assert not found.requires_grad
    assert found.dtype == images.dtype
    check_perturbation(images, found, settings.eps / 255, THREATS["linf"])
    network.eval()
    with torch.no_grad():
        before, after = (F.cross_entropy(network(x), labels, ignore_index=255) for x in (images, found))
    assert after > before
    half = perturb(network, images, labels, settings, seed=0, keys=KEYS, eps_share=0.5)
    assert not torch.equal(half, found)
    check_perturbation(images, half, settings.eps / 510, THREATS["linf"])
    none = perturb(network, images, labels, settings, seed=0, keys=KEYS, eps_share=0.0)
    assert torch.equal(none, images)


@pytest.mark.parametrize("settings", ATTACKS, ids=str)
@pytest.mark.parametrize("already", [False, True], ids=["no gradients", "gradients of before"])
def test_the_attack_leaves_no_trace(settings: AttackSettings, already: bool) -> None:
    """Parameters' gradients and flags, buffers, modes and the global generator are as before."""
    network, (images, labels) = trainee(), batch()
    network.network.body[1].eval()
    network.network.main.bias.requires_grad_(False)
    if already:
        network(images).logits.mean().backward()
    state = copy.deepcopy(network.state_dict())
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    flags = {name: p.requires_grad for name, p in network.named_parameters()}
    modes = [module.training for module in network.modules()]
    random = torch.get_rng_state()
    perturb(network, images, labels, settings, seed=0, keys=KEYS)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    for name, p in network.named_parameters():
        before = gradients[name]
        assert (p.grad is None) == (before is None)
        assert before is None or torch.equal(p.grad, before)
        assert p.requires_grad == flags[name]
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("settings", ATTACKS, ids=str)
def test_passes_are_counted(settings: AttackSettings) -> None:
    """k steps are k passes forward and k backward; APGD looks once more."""
    network, (images, labels) = trainee(), batch()
    passes = {"forward": 0, "backward": 0}

    def forward(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        assert len(inputs[0]) == 4
        passes["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(backward=passes["backward"] + 1))

    network.network.register_forward_hook(forward)
    perturb(network, images, labels, settings, seed=0, keys=KEYS)
    assert passes == {"forward": settings.steps + (settings.name == "apgd"), "backward": settings.steps}


@pytest.mark.parametrize("settings", ATTACKS, ids=str)
def test_an_image_is_attacked_the_same_in_any_company(settings: AttackSettings) -> None:
    network, (images, labels) = trainee(), batch()
    network.double()
    images = images.double()
    together = perturb(network, images, labels, settings, seed=3, keys=KEYS)
    rows = [2, 0]
    apart = perturb(network, images[rows], labels[rows], settings, seed=3, keys=[KEYS[i] for i in rows])
    # A gradient of rounding size may have either sign.
    assert (apart != together[rows]).double().mean() < (0.2 if settings.bf16 else 1e-3)


@pytest.mark.parametrize("settings", STARTING_AT_RANDOM, ids=str)
def test_random_starts_belong_to_seed_and_key(settings: AttackSettings) -> None:
    network, (images, labels) = trainee(), batch()
    void = torch.full_like(labels, 255)
    starts = [
        perturb(network, images, void, settings, seed=seed, keys=[f"{name}/epoch {epoch}" for name in "abcd"])
        for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[3])
    assert not torch.equal(starts[0][0] - images[0], starts[0][1] - images[1])


@pytest.mark.parametrize("objective", ["ce", "segpgd", "mce-bal"])
@pytest.mark.parametrize("threat", sorted(THREATS))
@pytest.mark.parametrize("random_start", [False, True])
def test_ascend_is_the_last_iterate_of_pgd(objective: str, threat: str, random_start: bool) -> None:
    network, images, labels = tiny_problem(3, 4, (3, 16, 20))
    arguments = {
        "eps": 8 / 255, "alpha": 3 / 255, "steps": 4, "objective": objective, "threat": threat, "seed": 5,
        "random_start": random_start, "image_ids": ["x", "y", "z"], "class_weights": torch.tensor([0.1, 0.2, 0.3, 0.4]),
    }  # fmt: skip
    expected = pgd(network, images, labels, keep="last", **arguments).adversarial
    assert torch.equal(ascend(network, images, labels, **arguments), expected)
    with pytest.raises(ValueError, match="steps"):
        ascend(network, images, labels, **{**arguments, "steps": 0})


def test_alpha_and_its_defaults() -> None:
    assert AttackSettings().step == pytest.approx(0.01 * 255)
    assert AttackSettings(alpha=3.0).step == 3.0
    assert AttackSettings("fgsm", steps=1, eps=6.0).step == 6.0
    assert AttackSettings("fgsm", steps=1, eps=6.0, random_start=True).step == 7.5
    network, (images, labels) = trainee(), batch()
    found = perturb(network, images, labels, AttackSettings(eps=8.0, alpha=1.5, steps=2), seed=0, keys=KEYS)
    assert (found - images).abs().max().item() == pytest.approx(3 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "pgdd"}, "did you mean pgd"),
        ({"objective": "mcee"}, "mce"),
        ({"eps": -1.0}, "eps .* -1"),
        ({"eps": float("nan")}, "eps"),
        ({"eps": 256.0}, "n of n/255"),
        ({"steps": 0}, "steps"),
        ({"name": "fgsm", "steps": 2}, "fgsm takes 1"),
        ({"name": "apgd", "alpha": 1.0}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_wrong_attack_settings(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AttackSettings(**arguments)  # type: ignore[arg-type]


def test_an_objective_with_class_weights_needs_them() -> None:
    network, (images, labels) = trainee(), batch()
    settings = AttackSettings(objective="mce-bal")
    with pytest.raises(UserError, match="class weights"):
        perturb(network, images, labels, settings, seed=0, keys=KEYS)
    step = training_step(
        network, images, labels, MethodSettings("at", settings), seed=0, keys=KEYS, class_weights=torch.ones(6)
    )
    assert step.loss.isfinite()


# The methods


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("still")
def test_what_each_method_trains_on_and_its_gradient(method: str) -> None:
    """The gradient is that of the loss of the images trained on: nothing of the attack is left in it."""
    network, (images, labels) = trainee(branches=method == "ddcat"), batch()
    settings = MethodSettings(method, AttackSettings(steps=2, random_start=True))
    state = copy.deepcopy(network.state_dict())
    adversarial = perturb(network, images, labels, settings.attack, seed=1, keys=KEYS)
    first = {"clean": 4, "at": 0, "sat": 2, "ddcat": 2}[method]
    expected_images = torch.cat([images[:first], adversarial[first:]])
    target = torch.zeros_like(labels)
    if method == "ddcat":
        target[:2] = divide(network, images[:2], adversarial[:2])
        assert target.any()
    assert not torch.equal(adversarial, images)

    torch.manual_seed(7)
    step = training_step(network, images, labels, settings, seed=1, keys=KEYS)
    assert torch.equal(step.images, expected_images)
    assert torch.equal(step.labels, labels)
    assert step.loss.requires_grad
    assert not step.logits.requires_grad
    assert all(not part.requires_grad for part in step.parts.values())
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    step.loss.backward()
    found = {name: p.grad for name, p in network.named_parameters()}

    network.load_state_dict(state)
    network.zero_grad()
    torch.manual_seed(7)
    outputs = network(expected_images)
    main, auxiliary = (
        F.cross_entropy(logits, labels, ignore_index=255) for logits in (outputs.logits, outputs.auxiliary)
    )
    loss = main + 0.4 * auxiliary
    if method == "ddcat":
        loss = loss + F.cross_entropy(outputs.mask, target)
    loss.backward()
    torch.testing.assert_close(step.loss, loss)
    for name, parameter in network.named_parameters():
        if method == "ddcat" or not name.startswith(("network.mask", "network.adversarial")):
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_batch_norm_sees_only_what_is_trained_on(method: str) -> None:
    network, (images, labels) = trainee(branches=method == "ddcat"), batch()
    settings = MethodSettings(method, AttackSettings(steps=2))
    step = training_step(network, images, labels, settings, seed=1, keys=KEYS)
    norm = network.network.body[1]
    assert norm.num_batches_tracked == 1
    fresh = trainee(branches=method == "ddcat")
    fresh(step.images)
    torch.testing.assert_close(norm.running_mean, fresh.network.body[1].running_mean)


@pytest.mark.usefixtures("still")
def test_dynamic_division_looks_at_the_joined_prediction() -> None:
    """Only the adversarial branch differs between the images where the mask says 1 everywhere, and no gradient runs."""
    network, (images, _) = trainee(branches=True), batch()
    other = images.flip(-1)
    inner = network.network
    with torch.no_grad():
        inner.mask.weight.zero_()
        inner.mask.bias.copy_(torch.tensor([0.0, 1.0]))
    network.eval()
    outputs = [network.all_outputs(x).logits for x in (images, other)]
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], inner.adversarial(inner.body(network._normalised(images))))
    network.train()
    found = divide(network, images, other)
    assert found.dtype == torch.int64
    assert torch.equal(found.bool(), outputs[0].argmax(1) != outputs[1].argmax(1))
    assert 0 < found.float().mean() < 1
    assert network.training
    assert divide(network, images, images).sum() == 0


@pytest.mark.parametrize("method", ["sat", "ddcat"])
def test_odd_batches_and_batches_too_small_to_halve(method: str) -> None:
    network, (images, labels) = trainee(branches=True), batch()
    settings = MethodSettings(method, AttackSettings(steps=1))
    step = training_step(network, images[:3], labels[:3], settings, seed=0, keys=KEYS[:3])
    assert [torch.equal(a, b) for a, b in zip(step.images, images, strict=False)] == [True, False, False]
    with pytest.raises(UserError, match="2 images"):
        training_step(network, images[:1], labels[:1], settings, seed=0, keys=KEYS[:1])


def test_networks_without_branches_cannot_do_ddcat() -> None:
    images, labels = batch()
    for network in (Trainee(Branched()), Trainee(ARCHITECTURES["small_unet"](num_classes=6, width=4))):
        with pytest.raises(UserError, match="mask branch"):
            training_step(network.train(), images, labels, MethodSettings("ddcat"), seed=0, keys=KEYS)


def test_wrong_method_settings() -> None:
    with pytest.raises(UserError, match="did you mean ddcat"):
        MethodSettings("ddc-at")
    with pytest.raises(UserError, match="aux_weight"):
        MethodSettings(aux_weight=-0.1)
    images, labels = batch()
    with pytest.raises(ValueError, match="train"):
        training_step(trainee().eval(), images, labels, MethodSettings(), seed=0, keys=KEYS)


# Losses


def test_pixel_loss_is_the_mean_over_counted_pixels() -> None:
    _, labels = batch()
    logits = torch.randn(4, 6, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pixel_loss(logits, labels), F.cross_entropy(logits, labels, ignore_index=255))
    assert pixel_loss(logits, torch.full_like(labels, 255)) == 0
    assert pixel_loss(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.usefixtures("still")
def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    """With `counted`, the mean over parts of very unequal numbers of labelled pixels is the joint batch's loss."""
    _, labels = batch()
    labels[0] = 255
    outputs = Outputs(torch.randn(4, 6, 32, 32), torch.randn(4, 6, 32, 32), torch.randn(4, 2, 32, 32))
    images = torch.zeros(4, 3, 32, 32)
    whole = batch_loss(outputs, images, labels)
    counted = (labels != 255).sum() / 2
    halves = [
        batch_loss(Outputs(*(o[rows] for o in outputs)), images[rows], labels[rows], counted=counted)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close((halves[0].loss + halves[1].loss) / 2, whole.loss)
    expected = whole.parts["main"] + whole.parts["mask"] + 0.4 * whole.parts["auxiliary"]
    torch.testing.assert_close(whole.loss, expected)


# The trainee


def test_outputs_of_foreign_networks_are_read_and_resized() -> None:
    coarse, other, wrong = torch.randn(2, 6, 8, 8), torch.randn(2, 6, 4, 4), torch.randn(2, 3, 8, 8)
    for raw in ({"out": coarse, "aux": other}, (coarse, other), [coarse, other]):
        outputs = read_outputs(raw, (32, 30))
        assert outputs.logits.shape == (2, 6, 32, 30)
        assert outputs.auxiliary is not None
        assert outputs.auxiliary.shape == (2, 6, 32, 30)
    for raw in (coarse, {"out": coarse}, (coarse, wrong), (coarse, None), {"logits": coarse}):
        assert read_outputs(raw, (8, 8)) == Outputs(coarse)
    with pytest.raises(UserError, match="no logits"):
        read_outputs({"loss": torch.zeros(())}, (8, 8))


def test_the_trainee_normalises_keeps_modes_and_adds_nothing_to_the_state() -> None:
    network = Branched()
    images, _ = batch()
    wrapped = Trainee(network.eval(), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    assert not wrapped.training
    scaled = (images - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.2]).view(3, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(images), network(scaled))
    assert set(wrapped.state_dict()) == {f"network.{name}" for name in network.state_dict()}
    with pytest.raises(UserError, match="belong together"):
        Trainee(network, mean=(0.4, 0.5, 0.6))
