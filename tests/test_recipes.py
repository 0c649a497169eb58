"""Recipes: those that come with the package, inheritance, changed keys, and what is said of mistakes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from robseg.errors import UserError
from robseg.models.architectures import ARCHITECTURES
from robseg.records.yaml_files import PeoplesLoader
from robseg.training.network import build
from robseg.training.recipes.files import FOLDER, load_recipe, recipe_names, recipe_text
from small_runs import RECIPE, recipe, write_recipe

DATA = ("_voc-pirat", "_ade20k-pirat", "_voc-ddcat", "_cityscapes-ddcat")
GIVEN = {"data.root": "data", "model.backbone": "backbone.pth"}


def published(name: str, **changes: object):
    return load_recipe(name, {**GIVEN, **changes})


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_complete_and_comes_back_from_its_own_text(name: str, tmp_path: Path) -> None:
    found = load_recipe(name, GIVEN)
    assert found.name == name
    assert found.about
    assert found.source
    assert found.model.architecture in ARCHITECTURES
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(found))
    assert load_recipe(file) == found


def test_recipes_say_only_what_differs_and_state_where_numbers_come_from() -> None:
    for file in FOLDER.glob("*.yaml"):
        content = yaml.safe_load(file.read_text())
        assert "inherits" in content or "source" in content or file.stem in ("_attack", *DATA), file
        parents = content.get("inherits", [])
        for parent in [parents] if isinstance(parents, str) else parents:
            inherited = yaml.safe_load((FOLDER / f"{parent}.yaml").read_text())
            assert not [key for key, value in content.items() if inherited.get(key) == value], (file, parent)


def test_one_recipe_for_each_published_configuration() -> None:
    names = set(recipe_names())
    upernet = {
        f"upernet-convnext-{size}-{data}-{method}"
        for size in "ts"
        for data in ("voc", "ade20k")
        for method in ("clean", "at2", "at5", "pirat2", "pirat5")
    }
    dilated = {
        f"{model}-{data}-{method}"
        for model in ("pspnet50", "deeplabv3-50")
        for data in ("voc", "cityscapes")
        for method in ("clean", "sat", "ddcat")
    }
    segmenter = {f"segmenter-vit-s-ade20k-{method}" for method in ("clean", "at5", "pirat5")}
    assert upernet | dilated | segmenter | {"demo-plain", "demo-robust"} <= names


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        # The tables of arXiv 2306.12941 and 2003.06555.
        (
            "upernet-convnext-t-voc-pirat5",
            {
                "batch_size": 128, "epochs": 50, "method": "at", "aux_weight": 0.4,
                "augmentation": {"crop": 473, "base": 512}, "schedule": {"warmup": 0.1, "power": 1, "count_from": 0},
                "optimiser": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2, "decay_all": False, "new_rate": 1},
                "attack": {"eps": 4, "alpha": 2.55, "steps": 5, "random_start": False, "objective": "ce"},
                "model": {"architecture": "upernet_convnext_t_cvst", "arguments": {"drop_path": 0.4}},
            },
        ),
        ("upernet-convnext-s-voc-at2", {"epochs": 300, "attack": {"steps": 2}, "schedule": {"warmup": 0.1}}),
        ("upernet-convnext-s-voc-clean", {"method": "clean", "model": {"arguments": {"drop_path": 0.3}}}),
        (
            "upernet-convnext-t-ade20k-pirat2",
            {"epochs": 32, "schedule": {"warmup": 5 / 32}, "augmentation": {"crop": 512, "base": 520}},
        ),
        ("upernet-convnext-t-ade20k-at5", {"epochs": 128, "schedule": {"warmup": 20 / 128}}),
        (
            "segmenter-vit-s-ade20k-pirat5",
            {
                "optimiser": {"name": "sgd", "lr": 2e-3, "weight_decay": 1e-4, "momentum": 0.9}, "batch_size": 16,
                "schedule": {"power": 0.9, "floor": 1e-5}, "epochs": 128, "attack": {"steps": 5},
            },
        ),
        (
            "pspnet50-voc-ddcat",
            {
                "model": {"architecture": "pspnet50_ddcat", "normalisation": "imagenet"}, "epochs": 50,
                "batch_size": 16, "attack": {"eps": 7.65, "alpha": 2.55, "steps": 3}, "method": "ddcat",
                "optimiser": {"name": "sgd", "lr": 0.01, "new_rate": 10, "weight_decay": 1e-4, "decay_all": True},
                "schedule": {"power": 0.9, "count_from": 1}, "sync_batch_norm": True,
                "augmentation": {"crop": 473, "scale": (0.5, 2), "rotation": 10, "blur": "5x5", "pad": "centre"},
            },
        ),
        (
            "deeplabv3-50-cityscapes-sat",
            {"method": "sat", "epochs": 400, "augmentation": {"crop": 449, "scale": (0.25, 1)}},
        ),
    ],
)  # fmt: skip
def test_the_published_numbers(name: str, numbers: dict[str, object]) -> None:
    def compare(stored: dict[str, object], wanted: dict[str, object]) -> None:
        for key, value in wanted.items():
            if isinstance(value, dict):
                compare(stored[key], value)
            else:
                assert stored[key] == value, key

    compare(published(name).model_dump(), numbers)


def test_the_length_of_a_training() -> None:
    found = published("upernet-convnext-t-voc-pirat2")
    assert found.total_steps(10582) == round(50 * 10582 / 128)
    assert published("upernet-convnext-t-voc-pirat2", steps=7).total_steps(10582) == 7
    assert load_recipe("demo-plain", ["epochs=0.001"]).total_steps(512) == 1
    assert load_recipe("demo-plain", {"epochs": 2}).total_steps(512) == 128


def test_changed_keys_reach_their_place_however_they_are_written() -> None:
    wanted = load_recipe("demo-robust", {"optimiser": {"lr": 1e-4}, "attack": {"steps": 3}})
    assert wanted.optimiser.lr == 1e-4
    assert wanted.optimiser.weight_decay == 1e-4
    assert wanted.attack.alpha == 3
    assert wanted == load_recipe("demo-robust", ["optimiser.lr=1e-4", "attack.steps=3"])
    assert wanted == load_recipe("demo-robust", {"optimiser.lr": "1e-4", "attack.steps": 3})
    assert wanted == load_recipe("demo-robust", ["optimiser={lr: 1E-4}", "attack.steps=3"])
    assert load_recipe("demo-robust", ["data.root=2012-10-01"]).data.root == "2012-10-01"
    assert load_recipe("demo-robust", ["data.root=2012"]).data.root == "2012"
    given = load_recipe("demo-plain", ["model.normalisation={mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}"])
    assert build(given, 6).normalisation() == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: 3", "unknown key '1'"),
        ("on: 3", "unknown key 'on'"),
        ("? [a, b]\n: 3", "key is no text"),
        ("- a", "mapping of keys"),
        ("", "mapping of keys"),
        ("steps: 1\nsteps: 2", "'steps' is given twice"),
        ("inherits: nothing-such", "nothing-such"),
        ("inherits: mine.yaml", "inherits from it in turn"),
        ("inherits: 5", "inherits is 5"),
    ],
)
def test_files_that_are_no_recipes(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        load_recipe(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data=foo", "data.train=bar"], "'data.train' is said, and 'data' as well"),
        (["optimiser.lr=1", "optimiser={lr: 2}"], "'optimiser' is said twice"),
        (["optimiser.lr=1", "optimiser.lr=2"], "'optimiser.lr' is given twice"),
        ({"optimiser.lr": 1, "optimiser": {"lr": 2}}, "'optimiser' is said twice"),
    ],
)
def test_keys_that_are_said_twice(changes: object, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        load_recipe("demo-plain", changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".yaml", "a/" * 3000 + "b.yaml", "\0", "nothing.yaml", "."])
def test_names_that_are_no_recipes(name: str) -> None:
    with pytest.raises(UserError, match="recipe"):
        load_recipe(name)


def test_a_recipe_needs_no_suffix_and_the_folder_of_a_training_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("inherits: demo-plain\nsteps: 7\n")
    assert load_recipe(tmp_path / "mine").steps == 7
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipe_text(load_recipe("demo-plain")))
    with pytest.raises(UserError, match=r"folder of a training; give --resume --out .*run"):
        load_recipe(tmp_path / "run")


@pytest.mark.parametrize(
    "name", ["010", "1e3", "0x10", "1_0", "2.10", "1:30", "on", "yes", "2012-10-01", "7", "null x"]
)
def test_names_that_look_like_numbers_stay_as_they_are_written(name: str) -> None:
    found = load_recipe("demo-plain", [f"data.root={name}"])
    assert found.data.root == name
    again = yaml.load(recipe_text(found), PeoplesLoader)
    assert load_recipe(again).data.root == name
    assert load_recipe("demo-plain", {"data.root": Path(name)}).data.root == name


def test_numbers_however_they_are_written() -> None:
    for text, value in (("1e-3", 1e-3), ("1E-3", 1e-3), ("1.e-3", 1e-3), (".5", 0.5), ("2", 2.0), ("+.5e1", 5.0)):
        found = load_recipe("demo-plain", [f"optimiser.lr={text}"])
        assert found.optimiser.lr == value
        assert load_recipe(yaml.load(recipe_text(found), PeoplesLoader)) == found
    drop = load_recipe("demo-plain", ["model={architecture: upernet_convnext_t, arguments: {drop_path: 1e-1}}"])
    assert drop.model.arguments == {"drop_path": 0.1}
    assert "drop_path: 0.1" in recipe_text(drop)


def test_what_belongs_to_an_attack_goes_with_it() -> None:
    for name in ("demo-robust", "upernet-convnext-t-voc-pirat2", "pspnet50-voc-sat"):
        given = {"data.root": "x", "model.backbone": "y"}
        assert load_recipe(name, given).attack.alpha is not None
        assert load_recipe(name, {**given, "attack.name": "apgd"}).attack.alpha is None
        fgsm = load_recipe(name, {**given, "attack.name": "fgsm", "attack.random_start": True}).attack
        assert (fgsm.steps, fgsm.step) == (1, 1.25 * fgsm.eps)
        assert load_recipe(name, {**given, "attack": {"name": "fgsm", "alpha": 3}}).attack.step == 3


def test_a_folder_of_data_is_needed_only_by_data_that_lie_there() -> None:
    given = {"model.backbone": "y", "data.train": "folder:mine"}
    with pytest.raises(UserError, match=r"data\.root"):
        load_recipe("upernet-convnext-t-voc-pirat2", given)
    assert load_recipe("upernet-convnext-t-voc-pirat2", {**given, "data.validation": None}).data.root is None


def test_what_belongs_to_an_architecture_goes_with_it() -> None:
    width = recipe(model={"arguments": {"width": 4}})
    own = load_recipe(width, ["model.architecture=mine:net"])
    assert (own.model.architecture, own.model.arguments) == ("mine:net", {})
    assert load_recipe(width, ["model.architecture=pspnet50"]).model.arguments == {}
    assert load_recipe(width, ["model.architecture=small_unet"]).model.arguments == {"width": 4}
    # Of a foreign network no backbone of robseg's form is asked for; of another of robseg's it is.
    assert load_recipe("pspnet50-voc-sat", ["data.root=x", "model.architecture=mine:net"]).model.backbone is None
    with pytest.raises(UserError, match=r"model\.backbone"):
        load_recipe("pspnet50-voc-sat", ["data.root=x", "model.architecture=deeplabv3_50"])


def test_a_recipe_of_ones_own_inherits_from_one_of_the_package_and_from_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.yaml").write_text("inherits: [demo-robust, ../third.yaml]\nepochs: 3\nbatch_size: 4\n")
    (tmp_path / "third.yaml").write_text("attack: {steps: 7}\nsteps: 9\n")
    (tmp_path / "mine.yaml").write_text("inherits: sub/base.yaml\nattack:\n  eps: 8\nbatch_size: 2\n")
    found = load_recipe(tmp_path / "mine.yaml", ["seed=5"])
    assert (found.name, found.attack.steps, found.attack.eps, found.attack.alpha) == ("mine", 7, 8, 3)
    assert (found.epochs, found.steps, found.batch_size, found.seed) == (3, None, 2, 5)
    (tmp_path / "third.yaml").write_text("inherits: mine.yaml\n")
    with pytest.raises(UserError, match="inherits"):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optimiser.lrr=1", ["unknown key 'optimiser.lrr'", "optimiser.lr"]),
        ("lr=1", ["unknown key 'lr'", "optimiser.lr"]),
        ("stesp=1", ["unknown key 'stesp'", "steps"]),
        ("zzz=1", ["unknown key 'zzz'", "known:", "batch_size"]),
        ("attack.epsilon=1", ["unknown key 'attack.epsilon'", "attack.eps"]),
        ("augmentation.crp=3", ["augmentation.crop"]),
        ("method=att", ["method", "'att'", "did you mean at"]),
        ("model.architecture=unet", ["model.architecture", "small_unet"]),
        ("optimiser.name=adam", ["optimiser.name", "'adam'", "'adamw' or 'sgd'"]),
        ("attack.steps=0", ["attack", "steps", "1 or more"]),
        ("attack.steps=two", ["attack.steps", "'two'", "integer"]),
        ("attack.objective=cee", ["attack", "objective", "ce"]),
        ("augmentation.crop=0", ["augmentation", "crop", "1 or more"]),
        ("optimiser.lr=0", ["optimiser.lr", "greater than 0"]),
        ("optimiser.lr=.nan", ["optimiser.lr", "finite"]),
        ("optimiser=3", ["optimiser", "mapping"]),
        ("schedule.warmup=2", ["schedule.warmup", "1"]),
        ("schedule.floor=1", ["schedule.floor", "optimiser.lr"]),
        ("batch_size=", ["batch_size", "integer"]),
        ("micro_batch=3", ["batch_size 4", "micro_batch 3"]),
        ("precision=fp8", ["precision", "'bf16'"]),
        ("ema=1", ["ema", "less than 1"]),
        ("model.normalisation=image", ["model.normalisation", "'imagenet'"]),
        ("model.normalisation=backbone", ["backbone"]),
        ("model.arguments={num_classes: 3}", ["num_classes"]),
        ("model.architecture=small_unte", ["model.architecture", "'small_unte'", "small_unet"]),
        ("model.architecture=torchscript:model.pt", ["model.architecture", "program", "package.module:factory"]),
        ("model={architecture: 'mine:net', arguments: {width: 3}}", ["model", "arguments", "'mine:net'"]),
        (
            "model={architecture: 'hf:folder', backbone: resnet.pth}",
            ["model", "backbone", "'hf:folder'"],
        ),
        ("validation.attack=pdg", ["validation", "'pdg'", "pgd"]),
        ("validation.attack=sea", ["validation.attack", "3 attacks"]),
        ("validation={attack: null, criterion: attacked.miou}", ["criterion"]),
        ("validation.criterion=miou", ["validation.criterion", "'clean.miou'"]),
        ("seed=1.5", ["seed", "1.5", "integer"]),
        ("optimiser.lr=true", ["optimiser.lr is true"]),
        ("attack.eps=true", ["attack.eps is true"]),
        ("steps=false", ["steps is false"]),
        ("steps=1e30", ["steps", "integer"]),
        ("epochs=1e308", ["epochs", "1000000"]),
        ("optimiser.lr=1e38", ["optimiser.lr"]),
        ("optimiser.betas=[1, 1]", ["optimiser.betas", "less than 1"]),
        ("optimiser.betas=[0.9]", ["optimiser.betas is [0.9]", "too few"]),
        ("optimiser.betas=0.9", ["optimiser.betas is 0.9", "a list of values"]),
        ("augmentation.crop=9999999999999999999999", ["augmentation", "crop"]),
        ("augmentation.scale=[1e300, 1e300]", ["augmentation", "scale", "100"]),
        ("augmentation={base: 99999999, scale: [1, 1]}", ["augmentation", "base"]),
        ("augmentation.fill=[0, 0, 256]", ["augmentation", "fill", "0 to 255"]),
        ("model.normalisation={mean: [0, 0, 0]}", ["model.normalisation", "std", "three numbers"]),
        ("model.normalisation={mean: [0, 0, 0], std: [0, 1, 1]}", ["model.normalisation", "std.0"]),
        ("model.normalisation={mean: [.nan, 0, 0], std: [1, 1, 1]}", ["model.normalisation", "mean.0", "finite"]),
        ("attack.objective=mcebal", ["attack", "objective", "did you mean mce-bal"]),
        ("needs=5", ["needs is 5", "a mapping"]),
        ("needs=[a.b]", ["needs", "a mapping"]),
        ("needs=null", ["needs is null", "a mapping"]),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file_and_what_is_allowed(
    change: str, words: list[str], tmp_path: Path
) -> None:
    base = write_recipe(tmp_path / "base.yaml")
    with pytest.raises(UserError) as said:
        load_recipe(base, [change])
    assert all(word in str(said.value) for word in words), said.value
    assert not str(said.value).endswith("?.")
    assert "the keys given" in str(said.value) or "base" in str(said.value)
    assert "\n" not in str(said.value)

    # The same in a file that another inherits: the file is named, not the one that was asked for.
    content = yaml.safe_load(change.replace("=", ": ", 1))
    for key in reversed(next(iter(content)).split(".")[:-1]):
        content = {key: {k.rpartition(".")[2]: v for k, v in content.items()}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({"inherits": "base.yaml"} | content))
    (tmp_path / "top.yaml").write_text(
        "inherits: wrong.yaml\nseed: 3\n" if "seed" not in change else "inherits: wrong.yaml"
    )
    with pytest.raises(UserError) as said:
        load_recipe(tmp_path / "top.yaml")
    assert "wrong.yaml" in str(said.value) or "top" in str(said.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", ["line", "not valid YAML"]),
        ("seed: 1\nseed: 2\n", ["line 2", "'seed' is given twice"]),
        ("- 1\n", ["mapping"]),
        ("", ["mapping"]),
        ("inherits: {a: 1}", ["inherits"]),
        ("inherits: demo-plan", ["demo-plain"]),
        ("inherits: other.yaml", ["other.yaml"]),
        ("method: clean", ["data", "missing"]),
    ],
)
def test_files_that_are_no_recipe(text: str, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as said:
        load_recipe(file)
    assert all(word in str(said.value) for word in words), said.value
    assert "wrong" in str(said.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("pspnet50-voc", ["pspnet50-voc-sat"]),
        ("nowhere/x.yaml", ["nowhere/x.yaml"]),
        ("pspnet50-voc-sat", ["model.backbone (", "data.root ("]),
        ("_dilated", ["missing"]),
    ],
)
def test_recipes_that_are_not_there_or_need_something(asked: str, words: list[str]) -> None:
    with pytest.raises(UserError) as said:
        load_recipe(asked) if asked != "_dilated" else load_recipe(asked, GIVEN)
    assert all(word in str(said.value) for word in words), said.value


@pytest.mark.parametrize("text", ["lr", "=3", "a.=3", "--x=1", "a=[1"])
def test_changes_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match=r"key=value|YAML"):
        load_recipe("demo-plain", [text])


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="twice"):
        load_recipe("demo-plain", ["seed=1", "seed=2"])


def test_loading_changes_nothing_that_was_given() -> None:
    given, overrides = recipe(), {"optimiser": {"lr": 1e-4}}
    load_recipe(given, overrides)
    assert given == RECIPE
    assert overrides == {"optimiser": {"lr": 1e-4}}
