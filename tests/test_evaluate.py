"""Evaluations from end to end: what a run folder holds, that it can be interrupted anywhere, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import robseg
from robseg.data import Sample
from robseg.evaluation import judge as judge_module
from robseg.evaluation.survey import batches
from robseg.metrics.counts import Counts
from robseg.models.wrapper import SegmentationModel
from robseg.records.result import Result, read_result
from robseg.records.run_folder import Record, RunFolder
from tiny import Tiny, tiny_problem

FAST = {"eps": (2, 8), "steps": 4, "progress": False, "device": "cpu"}


def network(classes: int = 4) -> Tiny:
    return tiny_problem(1, classes, (1, 16, 16))[0].float()


def samples(count: int = 5) -> list[Sample]:
    """Images of two sizes, on the 8-bit grid; the labels are what the network sees, with a tenth of them changed."""
    found = []
    for index in range(count):
        model, images, labels = tiny_problem(index, 4, (1, 24 if index == 2 else 16, 20))
        label = network()((255 * images.float()).round() / 255).argmax(1)[0]
        label = torch.where(labels[0] == model(images).argmax(1)[0], label, labels[0])
        label[0, :5] = 255
        found.append(Sample((255 * images[0].float()).round() / 255, label, f"image {index}"))
    return found


def without_timings(result: Result) -> dict:
    return result.model_dump(exclude={"timings", "folder"})


def evaluate(out, data=None, model=None, **changes) -> Result:
    arguments = {**FAST, "classes": 4, **changes}
    return robseg.evaluate(model or network(), samples() if data is None else data, out=out, **arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return evaluate(tmp_path_factory.mktemp("finished") / "run")


def test_result_holds_together(finished):
    folder = finished.folder
    assert json.loads((folder / "result.json").read_text())["schema_version"] == 1
    assert without_timings(read_result(folder)) == without_timings(finished)
    assert [radius.eps for radius in finished.radii] == [2, 8]
    previous = finished.clean
    for radius in finished.radii:
        worst = radius.worst_case
        for attack in radius.attacks:
            assert worst.aacc <= attack.scores.aacc <= finished.clean.aacc
            assert worst.miou <= attack.scores.miou + 1e-12
        assert worst.aacc <= previous.aacc
        previous = worst
    chosen = {image.radii[1].chosen_for_miou for image in finished.images}
    assert chosen <= {"clean", "apgd-mce-bal", "apgd-mce", "apgd-js"}
    assert finished.class_weights.source == "evaluated labels"
    assert finished.protocol.deviations == ["steps is 4, not 300"]
    # Clean costs one pass an image; each attack 4 steps + 3 stages, some of which a stage of no step saves, + judging.
    attack = finished.at(8).attack("apgd-mce")
    assert attack.backward_passes == 5 * 4
    assert attack.forward_passes == 5 * (4 + 3 + 1)
    assert finished.forward_passes == 5 + sum(a.forward_passes for r in finished.radii for a in r.attacks)
    with pytest.raises(KeyError, match="radii: 2, 8"):
        finished.at(4)


def test_stored_predictions_give_the_stored_scores(finished):
    right, pixels = [], []
    for entry, sample in zip(finished.images, samples(), strict=True):
        file = finished.folder / "predictions" / "eps-8_apgd-js" / f"{entry.index:06d}.png"
        prediction = torch.from_numpy(np.array(Image.open(file))).long()
        counted = sample.label != 255
        right.append(int(((prediction == sample.label) & counted).sum()))
        pixels.append(int(counted.sum()))
        assert entry.radii[1].accuracy["apgd-js"] == pytest.approx(right[-1] / pixels[-1])
        assert entry.counted_pixels == pixels[-1]
    assert finished.at(8).attack("apgd-js").scores.aacc_pooled == pytest.approx(sum(right) / sum(pixels))


def test_report_and_previews(finished):
    page = (finished.folder / "report.html").read_text()
    assert "<html" in page
    assert "apgd-mce-bal" in page
    previews = sorted(p.name for p in (finished.folder / "previews" / "000000").iterdir())
    assert "original.png" in previews
    assert "eps-8_apgd-js_perturbation.png" in previews


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_size_changes_nothing(finished, tmp_path, batch_size):
    other = evaluate(tmp_path / "run", batch_size=batch_size)
    for name in ("clean", "eps-8_apgd-mce-bal", "eps-2_apgd-js"):
        ours, theirs = (RunFolder(r.folder, 4).records(name) for r in (other, finished))
        assert ours.keys() == theirs.keys() == set(range(5))
        for index in ours:
            assert np.array_equal(ours[index].counts.intersection, theirs[index].counts.intersection)
            assert np.array_equal(ours[index].counts.union, theirs[index].counts.union)


def test_an_image_alone_gives_the_same_counts(finished, tmp_path):
    weights = finished.class_weights.values
    pixels = [Sample(torch.zeros(3, 100, 1000), torch.zeros(100, 1000, dtype=torch.int64), "train")]
    counts = [round(1e4 * min(weights) / w) for w in weights]
    pixels[0].label.view(-1)[:] = 255
    pixels[0].label.view(-1)[: sum(counts)] = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    alone = evaluate(tmp_path / "run", data=samples()[1:2], train_data=pixels, attack=["apgd-mce", "apgd-js"])
    for eps in (2, 8):
        for attack in ("apgd-mce", "apgd-js"):
            assert alone.at(eps).attack(attack).scores.aacc == pytest.approx(
                finished.images[1].radii[[2, 8].index(eps)].accuracy[attack]
            )


def test_sliding_window_is_a_property_of_the_model(finished, tmp_path):
    """A network that sees each pixel alone answers the same through windows; and other windows are another run."""

    class Pointwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)
            nn.init.orthogonal_(self.head.weight, 5)
            nn.init.zeros_(self.head.bias)

        def forward(self, x):
            return self.head(x)

    torch.manual_seed(0)
    model = Pointwise()
    whole = evaluate(tmp_path / "whole", model=model, attack="apgd-ce")
    windows = evaluate(tmp_path / "windows", model=model, attack="apgd-ce", window=12)
    assert windows.clean == whole.clean
    assert windows.at(8).worst_case.aacc == pytest.approx(whole.at(8).worst_case.aacc, abs=0.02)
    with pytest.raises(robseg.UserError, match="window is 12 there and 8 now"):
        evaluate(tmp_path / "windows", model=model, attack="apgd-ce", window=8)


def test_eps_zero_is_clean(tmp_path):
    result = evaluate(tmp_path / "run", eps=0)
    (radius,) = result.radii
    for attack in radius.attacks:
        assert attack.scores == result.clean
    assert radius.worst_case.model_dump() == result.clean.model_dump()


class KilledError(Exception):
    pass


@pytest.mark.parametrize("records", [0, 3, 7, 19, 34])
def test_an_interrupted_run_goes_on_to_the_same_result(finished, tmp_path, monkeypatch, records):
    left = records
    append = RunFolder.append

    def dies(self, condition, record):
        nonlocal left
        if left == 0:
            # As a process that is killed in the middle of writing a line.
            file = self.path / "records" / f"{condition}.jsonl"
            file.parent.mkdir(exist_ok=True)
            with file.open("ab") as stream:
                stream.write(b'{"index": 4, "id": "ima')
            raise KilledError
        left -= 1
        append(self, condition, record)

    monkeypatch.setattr(RunFolder, "append", dies)
    with pytest.raises(KilledError):
        evaluate(tmp_path / "run", batch_size=2)
    assert not (tmp_path / "run" / "result.json").exists()
    monkeypatch.setattr(RunFolder, "append", append)
    resumed = evaluate(tmp_path / "run", batch_size=2)
    whole = evaluate(tmp_path / "whole", batch_size=2)
    assert without_timings(resumed) == without_timings(whole)


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr(judge_module.AttackConfig, "run", lambda *a, **k: pytest.fail("attacked again"))
    assert without_timings(evaluate(finished.folder)) == without_timings(finished)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"eps": (2, 9)}, "eps"),
        ({"seed": 1}, "seed"),
        ({"steps": 5}, "attacks"),
        ({"attack": "sea-v1"}, "attacks"),
        ({"limit": 2}, "limit"),
        ({"save_images": "float"}, "save_images"),
        ({"norm": "l2"}, "norm"),
        ({"precision": "fp64"}, "precision"),
        ({"data": samples()[::-1]}, "data_sha256"),
        ({"model": tiny_problem(2, 4, (1, 8, 8))[0].float()}, "model_sha256"),
    ],
)
def test_other_settings_are_refused_with_the_key(finished, changes, key):
    with pytest.raises(robseg.UserError, match=key):
        evaluate(finished.folder, **changes)


def test_images_are_stored_as_judged(tmp_path):
    for form in ("float", "8bit"):
        result = evaluate(tmp_path / form, save_images=form, attack="apgd-js", eps=5)
        for entry, sample in zip(result.images, samples(), strict=True):
            file = tmp_path / form / "adversarial" / "eps-5_apgd-js" / f"{entry.index:06d}"
            if form == "float":
                image = load_file(file.with_suffix(".safetensors"))["image"]
            else:
                image = torch.from_numpy(np.array(Image.open(file.with_suffix(".png")))).permute(2, 0, 1).float() / 255
            assert (image - sample.image).abs().max() <= 5 / 255 + 1e-6
            with torch.no_grad():
                prediction = SegmentationModel(network()).eval()(image[None]).argmax(1)[0]
            stored = np.array(Image.open(tmp_path / form / "predictions" / "eps-5_apgd-js" / f"{entry.index:06d}.png"))
            assert np.array_equal(prediction.numpy(), stored)


def test_only_the_worst_images_keep_previews(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_module, "PREVIEWS", 2)
    result = evaluate(tmp_path / "run", batch_size=2)
    worst = sorted(result.images, key=lambda i: min(i.radii[-1].accuracy.values()))[:2]
    assert {int(p.name) for p in (tmp_path / "run" / "previews").iterdir()} == {image.index for image in worst}


def test_images_without_counted_pixels_are_reported(tmp_path):
    data = samples(3)
    data[1].label[:] = 255
    result = evaluate(tmp_path / "run", data=data)
    assert result.data.images_without_counted_pixels == ["image 1"]
    assert any("no counted pixel" in warning for warning in result.warnings)
    assert result.images[1].clean_accuracy is None
    assert result.images[1].radii[0].accuracy == {"apgd-mce-bal": None, "apgd-mce": None, "apgd-js": None}
    others = evaluate(tmp_path / "others", data=[data[0], data[2]])
    assert others.at(8).worst_case == result.at(8).worst_case
    for label in (data[0].label, data[2].label):
        label[:] = 255
    with pytest.raises(robseg.UserError, match="None of the 3 images"):
        evaluate(tmp_path / "none", data=data)


def test_doubtful_models_are_warned_of_in_the_result(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network()

        def forward(self, x):
            return self.network(x + 0.2 * torch.rand_like(x))

    result = evaluate(tmp_path / "noisy", model=Noisy())
    assert any("answers differently" in warning for warning in result.warnings)
    shuffled = [Sample(s.image, (s.label + 1) % 4, s.id) for s in samples(2)]
    for sample in shuffled:
        sample.label[:] = sample.label.clamp(max=3)
    result = evaluate(tmp_path / "shuffled", data=shuffled)
    assert any("below what predicting one class" in warning for warning in result.warnings)


def test_batches_are_of_one_size_and_hold_every_image_once():
    sizes = ((4, 4), (5, 4), (4, 4), (4, 4), (5, 4), (9, 9), (4, 4))
    assert batches(sizes, 3) == [[0, 2, 3], [6], [1, 4], [5]]
    assert batches(sizes, 1) == [[0], [2], [3], [6], [1], [4], [5]]


def test_records_survive_the_disk(tmp_path):
    folder = RunFolder(tmp_path, 300)
    target = np.zeros(300, dtype=np.int64)
    target[[3, 250]] = 7, 10**12
    record = Record(5, 'an "id"\nwith é', Counts(target // 2, target, target), 3, 2, 1, 0.5)
    folder.append("x[1]_y", record)
    found = folder.records("x[1]_y")[5]
    assert found.id == record.id
    assert np.array_equal(found.counts.intersection, record.counts.intersection)
    assert folder.records("x[1]") == {}
    (tmp_path / "records" / "bad.jsonl").write_text('{"index": 1}\n')
    with pytest.raises(robseg.UserError, match=r"bad\.jsonl, line 1"):
        folder.records("bad")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"index": [0]}, r"index holds \[0\]"),
        ({"index": -1}, "index holds -1"),
        ({"target": [10**22, 7]}, "target holds 1000"),
        ({"target": [7.5, 7]}, "target holds 7.5"),
        ({"target": [7]}, "target and classes"),
        ({"classes": [-1, 250]}, "classes holds -1"),
        ({"classes": [3, 300]}, "classes holds 300"),
        ({"classes": [3, 3]}, "classes do not go together"),
        ({"union": None}, "union is no list"),
        ({"seconds": "x"}, "seconds is x"),
        ({"seconds": -1}, "seconds is -1"),
        ({"forward_passes": None}, "forward_passes holds None"),
        ({"target": [8, 7], "union": [8, 7]}, "count different label pixels of image 5"),
    ],
)
def test_damaged_records_are_refused_with_the_line(tmp_path, changes, words):
    good = {"index": 5, "id": "a", "classes": [3, 250], "intersection": [1, 2], "union": [7, 7], "target": [7, 7],
            "forward_passes": 3, "backward_passes": 2, "invalid_points": 0, "seconds": 0.5}  # fmt: skip
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "clean.jsonl").write_text(json.dumps(good) + "\n")
    (tmp_path / "records" / "bad.jsonl").write_text(
        json.dumps({**good, "index": 6}) + "\n" + json.dumps(good | changes)
    )
    folder = RunFolder(tmp_path, 300)
    assert set(folder.records("clean")) == {5}
    # A last line without its end is still being written.
    assert set(folder.records("bad")) == {6}
    with (tmp_path / "records" / "bad.jsonl").open("a") as stream:
        stream.write("\n")
    with pytest.raises(robseg.UserError, match=rf"bad\.jsonl, line 2.*{words}"):
        folder.records("bad")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format: 1\nsettings: []\nidentity: {}", r"settings must be a mapping, not \[\]"),
        ("format: 1\nsettings: {}\nidentity: 5", "identity must be a mapping, not 5"),
        ("format: 2\nsettings: {}\nidentity: {}", "has format 2"),
        ("5", "does not describe"),
    ],
)
def test_damaged_settings_are_refused(tmp_path, text, words):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(robseg.UserError, match=f"settings.yaml.*{words}"):
        RunFolder(tmp_path, 3).begin({"settings": {}, "identity": {}})


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ([{"name": "a" * 70, "steps": 3}], [{"name": "a" * 70, "steps": 5}], "attacks.0.steps is 3 there and 5 now"),
        (
            [{"name": "a", "steps": "3" * 70}, {"name": "b"}],
            [{"name": "a", "steps": "3" * 70}],
            "attacks is a, b there and a now",
        ),
        (["a" * 70, "b"], ["a" * 70], "there and ..."),
        ("x" * 80 + "1", "x" * 80 + "2", f"is ...{'x' * 20}1 there and ...{'x' * 20}2 now"),
    ],
)
def test_the_difference_of_long_settings_is_shown(tmp_path, before, now, said):
    folder = RunFolder(tmp_path, 3)
    folder.begin({"settings": {"attacks": before}, "identity": {}})
    with pytest.raises(robseg.UserError) as error:
        folder.begin({"settings": {"attacks": now}, "identity": {}})
    assert said in str(error.value)


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    folder = RunFolder(tmp_path, 3)
    folder.begin({"settings": {}, "identity": {}})
    (tmp_path / "records" / "clean.jsonl").mkdir(parents=True)
    with pytest.raises(robseg.UserError, match=r"clean\.jsonl cannot be read: Is a directory"):
        folder.begin({"settings": {}, "identity": {}})


FACTORY = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_problem
def make(num_classes):
    return tiny_problem(1, num_classes, (1, 16, 16))[0].float()
"""


def test_sigkill_and_two_processes(tmp_path):
    """The real command: killed while it runs, finished by a second call; and the same from two processes."""
    (tmp_path / "factory.py").write_text(FACTORY.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, "-m", "robseg", "evaluate", "factory:make", "--data", "shapes?count=6&size=32",
               "--eps", "4", "--steps", "40", "--batch-size", "2", "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out):
        done = subprocess.run([*command, "--out", out], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return without_timings(read_result(tmp_path / out))

    whole = run("whole")
    process = subprocess.Popen([*command, "--out", "killed"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    records = tmp_path / "killed" / "records" / "eps-4_apgd-mce.jsonl"
    deadline = time.monotonic() + 60
    while not records.exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert records.exists()
    assert not (tmp_path / "killed" / "result.json").exists()
    assert run("killed") == whole

    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=29517",
        "-m",
        "robseg",
    ]
    done = subprocess.run(
        [*launch, *command[3:], "--out", "two"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert without_timings(read_result(tmp_path / "two")) == whole
    assert (tmp_path / "two" / "records" / "clean.rank1.jsonl").exists()
