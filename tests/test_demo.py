"""The demo in small: what it leaves behind, that it goes on, and that its models can be used by name and folder."""

from __future__ import annotations

import dataclasses
import queue

import pytest
from rich.console import Console

from robseg import UserError, demo, evaluate, read_result
from robseg.loading.model_source import open_model


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Recipes and an evaluation that take a second instead of minutes."""
    monkeypatch.setenv("ROBSEG_HOME", str(tmp_path / "home"))
    sides = []
    for side in demo.SIDES:
        file = tmp_path / f"{side.name}.yaml"
        file.write_text(f"inherits: {side.recipe}\nsteps: 2\nbatch_size: 2\n")
        sides.append(dataclasses.replace(side, recipe=str(file)))
    monkeypatch.setattr(demo, "SIDES", tuple(sides))
    monkeypatch.setattr(demo, "STEPS", 1)
    monkeypatch.setattr(demo, "IMAGES", 2)
    monkeypatch.setattr(demo, "EVALUATION", "shapes?split=val&count=2&size=32")
    return tmp_path


def test_both_sides(small):
    messages = queue.Queue()
    for side in demo.SIDES:
        demo.run_side(side, small / "out", messages)
    told = list(messages.queue)
    assert {name for name, _, _ in told} == {"plain", "robust"}
    shares = [share for name, share, _ in told if name == "robust"]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    result = read_result(small / "out" / "robust")
    assert [radius.eps for radius in result.radii] == list(demo.EPS)
    assert len(result.data.classes) == 6

    weights = small / "out" / "models" / "plain" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    demo.run_side(demo.SIDES[0], small / "out", messages)
    assert weights.stat().st_mtime_ns == before

    for name in ("demo-plain", str(small / "out" / "models" / "plain")):
        open_model(name, num_classes=6)
        again = evaluate(
            name,
            demo.EVALUATION,
            eps=demo.EPS,
            steps=1,
            out=small / name.replace("/", "_"),
            progress=False,
            device="cpu",
        )
        assert again.model.sha256 == read_result(small / "out" / "plain").model.sha256
        assert again.at(8).worst_case == read_result(small / "out" / "plain").at(8).worst_case


def test_a_fault_in_one_process_reaches_the_user(small):
    (small / "out").mkdir()
    (small / "out" / "models").write_text("in the way")
    with pytest.raises((OSError, UserError)):
        demo.run_demo(small / "out", Console(quiet=True))
