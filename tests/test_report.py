"""The report: what it says, that it stands alone, and that its script shows what the address asks for."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from typer.testing import CliRunner

from fabricate import fabricate_run
from robseg.cli import app
from robseg.errors import UserError
from robseg.records.result import Result, read_result
from robseg.report import figures, page, pictures
from robseg.report.page import percent, verdict, write_report

VOID = {"meta", "link", "img", "br", "hr", "input"}
ODD_ID = "dir/ä ö?&=#+%41<b>\"'.png"


class Page(HTMLParser):
    """Reads a page, and fails where a tag is not closed or closed twice."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.stack[-1], data.strip()))

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(key) == value for key, value in wanted.items())]

    @property
    def text(self) -> str:
        words = " ".join(text for tag, text in self.texts if tag not in ("script", "style"))
        return re.sub(r"\s+", " ", words)

    @property
    def data(self) -> dict:
        place = next(i for i, (tag, text) in enumerate(self.texts) if tag == "script" and text.startswith('{"'))
        return json.loads(self.texts[place][1])


def make(tmp_path: Path, *runs: tuple[str, Result]) -> str:
    file = tmp_path / "report.html"
    write_report([(title, result.folder) for title, result in runs], file)
    return file.read_text(encoding="utf-8")


def image_entry(data: dict, image_id: str) -> dict:
    return next(image for image in data["images"] if image["id"] == image_id)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fabricate_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def robust(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return fabricate_run(tmp_path_factory.mktemp("runs") / "robust", seed=1, weakness=0.02, eps=(8, 16), previews=[1])


def test_page_stands_alone(tmp_path: Path, run: Result, robust: Result) -> None:
    for html in (make(tmp_path, ("plain", run)), make(tmp_path, ("plain", run), ("robust", robust))):
        parsed = Page(html)
        for _, attributes in parsed.tags:
            for key in ("src", "href", "action", "srcset"):
                assert (attributes.get(key) or "#").startswith(("data:", "#"))
        assert not re.search(r"(?i)@import|url\(|https?://", html)
        ids = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
        assert len(ids) == len(set(ids))
        for _, attributes in parsed.tags:
            assert attributes.get("aria-labelledby") in (None, *ids)
        assert all(attributes.get("alt") is not None for attributes in parsed.all("img"))
        assert parsed.all("meta", name="viewport")


def test_report_is_a_function_of_the_run(tmp_path: Path, run: Result) -> None:
    assert make(tmp_path, ("plain", run)) == make(tmp_path, ("plain", run))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_all_scores_are_in_the_table(tmp_path: Path, run: Result) -> None:
    text = Page(make(tmp_path, ("plain", run))).text

    def row(name: str, scores: object) -> str:
        return " ".join([name, *(percent(getattr(scores, key)) for key in page.MEASURES)])

    assert row("clean", run.clean) in text
    for radius in run.radii:
        assert f"{radius.eps:g}/255 {row(radius.attacks[0].name, radius.attacks[0].scores)}" in text
        for attack in radius.attacks:
            assert row(attack.name, attack.scores) in text
        assert row("worst case", radius.worst_case) in text
    for deviation in run.protocol.deviations:
        assert deviation in text
    for said in (
        run.data.void,
        run.data.sha256[:12],
        run.model.sha256[:12],
        "7,703,497 parameters",
        "SEA (2306.12941v2)",
    ):
        assert said in text


def test_comparison_sets_runs_side_by_side(tmp_path: Path, run: Result, robust: Result) -> None:
    text = Page(make(tmp_path, ("plain", run), ("robust", robust))).text
    cells = [percent(getattr(result.at(8).worst_case, key)) for result in (run, robust) for key in ("aacc", "miou")]
    assert "worst case " + " ".join(cells) in text
    # 4/255 and 16/255 were evaluated for one of the two each.
    assert f"4/255 apgd-mce-bal {percent(run.at(4).attacks[0].scores.aacc)}" in text
    assert f"16/255 apgd-mce-bal {percent(robust.at(16).attacks[0].scores.aacc)}" in text
    assert "plain against robust" in text
    three = fabricate_run(tmp_path / "c", seed=3)
    assert "3 models compared" in Page(make(tmp_path, ("a", run), ("b", robust), ("c", three))).text


def test_data_for_the_script_agrees_with_the_result(tmp_path: Path, run: Result, robust: Result) -> None:
    data = Page(make(tmp_path, ("plain", run), ("robust", robust))).data
    for number, result in enumerate((run, robust)):
        assert data["runs"][number]["clean_iou"] == result.clean.class_iou
        assert data["runs"][number]["worst_iou"] == {f"{r.eps:g}": r.worst_case.class_iou for r in result.radii}
        for entry in result.images:
            shown = image_entry(data, entry.id)["runs"][number]
            assert shown["clean_accuracy"] == entry.clean_accuracy
            for radius in entry.radii:
                own = shown["radii"][f"{radius.eps:g}"]
                assert own["accuracy"] == radius.accuracy
                assert own["chosen_for_miou"] == radius.chosen_for_miou
                for attack, found in own["shown"].items():
                    # The second run has previews of image 1 only, but predictions of all.
                    assert found["prediction"].startswith("data:image/png;base64,"), attack
                    assert (found["adversarial"] is None) == (number == 1 and entry.index != 1)
    lowest = [
        min(v for run_ in image["runs"] for r in run_["radii"].values() for v in r["accuracy"].values())
        for image in data["images"]
    ]
    assert len(lowest) == 3
    assert lowest == sorted(lowest)


def test_first_image_needs_no_script(tmp_path: Path, run: Result) -> None:
    parsed = Page(make(tmp_path, ("plain", run)))
    first = parsed.data["images"][0]
    radius = first["runs"][0]["radii"]["8"]
    chosen = radius["shown"][radius["chosen_for_miou"]]
    sources = [image["src"] for image in parsed.all("img")]
    for source in (first["original"], first["label"], first["runs"][0]["clean"], *chosen.values()):
        assert source in sources
    assert f"{radius['chosen_for_miou']} at 8/255" in parsed.text


def test_maps_have_the_colours_of_the_classes(tmp_path: Path, run: Result) -> None:
    data = Page(make(tmp_path, ("plain", run))).data
    uri = data["images"][0]["label"]
    picture = np.asarray(pictures.Image.open(_bytes(uri)).convert("RGB")).reshape(-1, 3)
    allowed = {tuple(entry.colour) for entry in run.data.classes} | set(pictures.HATCH)
    assert {tuple(pixel) for pixel in picture.tolist()} <= allowed
    assert {tuple(pixel) for pixel in picture.tolist()} >= set(pictures.HATCH)
    assert data["images"][0]["classes"][-1] == 255


def _bytes(uri: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_everything_of_the_users_is_escaped(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    result = fabricate_run(
        tmp_path / "run", ids=(ODD_ID, evil, "道路"), names=("<i>road</i> & \"co\"", evil, "Straße"), warnings=[evil],
        attacks=("pgd?steps=2", "fgsm"),
    )  # fmt: skip
    html = make(tmp_path, (f"{evil} & 'x'", result))
    parsed = Page(html)
    assert len(parsed.all("script")) == 3
    assert all(tag.get("class") for tag in parsed.all("i")), "the page's own <i> all have a class"
    assert {image["id"] for image in parsed.data["images"]} == {ODD_ID, evil, "道路"}
    for text in ('<i>road</i> & "co"', evil, "Straße", "pgd[steps=2]"):
        assert text in parsed.text + "".join(image["alt"] or "" for image in parsed.all("img"))


def test_null_scores_are_an_en_dash(tmp_path: Path) -> None:
    ignored = np.full((24, 32), 255, dtype=np.uint8)
    result = fabricate_run(tmp_path / "run", ids=("only",), labels=[ignored])
    assert result.clean.aacc is None
    parsed = Page(make(tmp_path, ("plain", result)))
    assert "clean – – – – –" in parsed.text
    assert "worst case – – – – –" in parsed.text
    assert "aAcc is undefined, as no pixel was counted" in parsed.text
    assert "nan" not in parsed.text.lower().split()
    assert "None" not in parsed.text


def test_many_classes_are_drawn_in_part_and_listed_in_full(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(151)]
    result = fabricate_run(tmp_path / "run", names=names, size=(64, 64), eps=(0.5,))
    parsed = Page(make(tmp_path, ("plain", result)))
    bars = [int(tag["data-class"] or 0) for tag in parsed.all("div", **{"class": "bar"})]
    assert len(bars) == page.FEWER_BARS
    assert bars == sorted(bars)
    least = min(result.data.classes[c].pixels for c in bars)
    assert all(entry.pixels <= least for c, entry in enumerate(result.data.classes) if c not in bars)
    assert all(("th", name) in parsed.texts for name in names)


@pytest.mark.parametrize("classes", [1, 254, 255])
def test_numbers_of_classes_at_the_limits(tmp_path: Path, classes: int) -> None:
    result = fabricate_run(tmp_path / "run", names=[f"c{i}" for i in range(classes)], ids=("a",), attacks=("fgsm",))
    data = Page(make(tmp_path, ("plain", result))).data
    picture = pictures.Image.open(_bytes(data["images"][0]["label"])).convert("RGB")
    # The top stripe of the label is ignored.
    assert picture.getpixel((0, 0)) in pictures.HATCH


def test_radius_of_zero(tmp_path: Path) -> None:
    result = fabricate_run(tmp_path / "run", eps=(0, 4), attacks=("fgsm",))
    parsed = Page(make(tmp_path, ("plain", result)))
    assert f"0/255 fgsm {percent(result.at(0).attacks[0].scores.aacc)}" in parsed.text
    alone = fabricate_run(tmp_path / "alone", eps=(0,), attacks=("fgsm",))
    assert "Under fgsm at 0/255" in Page(make(tmp_path, ("plain", alone))).text


def test_missing_and_damaged_pictures_are_left_out(tmp_path: Path) -> None:
    result = fabricate_run(tmp_path / "run", eps=(8,), previews=[0, 2])
    place = tmp_path / "run" / "previews" / "000000"
    (place / "original.png").unlink()
    (place / "label.png").write_bytes(b"no picture")
    damaged = place / "eps-8_apgd-js.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    shutil.rmtree(tmp_path / "run" / "predictions" / "clean")
    data = Page(make(tmp_path, ("plain", result))).data
    assert {image["id"] for image in data["images"]} == {"first", "third"}
    first = image_entry(data, "first")
    assert first["original"] is None
    assert first["label"] is None
    assert first["runs"][0]["clean"] is None
    assert first["runs"][0]["radii"]["8"]["shown"]["apgd-js"]["adversarial"] is None
    assert first["runs"][0]["radii"]["8"]["shown"]["apgd-mce"]["adversarial"]
    shutil.rmtree(tmp_path / "run" / "previews")
    assert "No pictures were stored" in Page(make(tmp_path, ("plain", result))).text


def test_clean_image_as_the_worst_case(tmp_path: Path) -> None:
    """With a radius of 0 every attack is the clean image, so that the clean one is chosen."""
    result = fabricate_run(tmp_path / "run", eps=(8,), attacks=("fgsm",))
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    for image in stored["images"]:
        image["radii"][0]["chosen_for_miou"] = "clean"
    (tmp_path / "run" / "result.json").write_text(json.dumps(stored))
    parsed = Page(make(tmp_path, ("plain", result)))
    sources = [image["src"] for image in parsed.all("img")]
    assert sources.count(parsed.data["images"][0]["runs"][0]["clean"]) == 2
    assert "Prediction, the clean image" in parsed.text
    assert "Clean image: no attack makes it worse" in parsed.text
    assert "Adversarial image, " not in parsed.text


def test_pictures_keep_to_the_budget(tmp_path: Path, run: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {"plain": run}
    full = pictures.gallery(runs)
    size = pictures._length(full.images)
    assert full.level is pictures.LEVELS[0]
    assert full.left_out == 0
    monkeypatch.setattr(pictures, "BUDGET", size // 2)
    fewer = pictures.gallery(runs)
    assert not fewer.level.all_attacks
    assert fewer.left_out == 0
    assert pictures._length(fewer.images) <= size // 2
    for image in fewer.images:
        for radius in image["runs"][0]["radii"].values():
            assert set(radius["shown"]) == {radius["chosen_for_miou"]} - {"clean"}
    monkeypatch.setattr(pictures, "BUDGET", 1)
    least = pictures.gallery(runs)
    assert len(least.images) == 1
    assert least.left_out == 2
    assert "2 more are in the run folder" in Page(make(tmp_path, ("plain", run))).text


def test_large_pictures_are_scaled(tmp_path: Path) -> None:
    result = fabricate_run(tmp_path / "run", size=(300, 1100), ids=("a",), eps=(8,), attacks=("fgsm",))
    image = Page(make(tmp_path, ("plain", result))).data["images"][0]
    shown = image["runs"][0]["radii"]["8"]["shown"]["fgsm"]
    assert image["original"].startswith("data:image/jpeg")
    for uri, side in ((image["original"], 512), (image["label"], 512), (shown["perturbation"], 256)):
        assert pictures.Image.open(_bytes(uri)).size == (side, round(side * 300 / 1100))


@pytest.mark.parametrize(
    ("clean", "worst", "said"),
    [
        ((0.931, 0.71), (0.124, 0.032), "aAcc falls from 93.1 % to 12.4 % and mIoU from 71.0 % to 3.2 %."),
        ((0.5, 0.5), (0.5, 0.25), "aAcc stays at 50.0 % and mIoU falls from 50.0 % to 25.0 %."),
        ((0.5, 0.5), (0.5, 0.50001), "aAcc stays at 50.0 % and mIoU at 50.0 %."),
    ],
)
def test_verdict(run: Result, clean: tuple[float, float], worst: tuple[float, float], said: str) -> None:
    def scores(table: Any, values: tuple[float, float]) -> Any:
        return table.model_copy(update={"aacc": values[0], "miou": values[1]})

    radius = run.radii[-1].model_copy(update={"worst_case": scores(run.radii[-1].worst_case, worst)})
    changed = run.model_copy(update={"clean": scores(run.clean, clean), "radii": [run.radii[0], radius]})
    found = verdict({"plain": changed}).replace("\u00a0", " ")
    assert found == f"Under SEA (2306.12941v2) with deviations at 8/255, {said}"


def test_verdict_of_a_comparison_is_at_a_common_radius(run: Result, robust: Result) -> None:
    found = verdict({"plain": run, "robust": robust}).replace("\u00a0", " ")
    assert found.count("8/255") == 1
    assert "16/255" not in found
    for title, result in (("plain", run), ("robust", robust)):
        assert f"with “{title}” aAcc falls from {percent(result.clean.aacc)} % to" in found
        assert f"to {percent(result.at(8).worst_case.miou)} %" in found


def test_unlike_runs_are_refused_or_warned_of(tmp_path: Path, run: Result) -> None:
    other = fabricate_run(tmp_path / "other", data_seed=7)
    fewer = fabricate_run(tmp_path / "fewer", ids=("a",), data_seed=7)
    l2 = fabricate_run(tmp_path / "l2", norm="l2")
    for result, said in ((other, "checksum"), (fewer, "number of images is 3 in the first and 1"), (l2, "norms")):
        with pytest.raises(UserError, match=said):
            make(tmp_path, ("plain", run), ("other", result))
    with pytest.raises(UserError, match="Two runs are called 'x'"):
        make(tmp_path, ("x", run), ("x", run))
    with pytest.raises(UserError, match="No run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(UserError, match=r"result\.json is missing"):
        write_report([("x", tmp_path)], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
    weak = fabricate_run(tmp_path / "weak", attacks=("fgsm",), warnings=["Mind <this>."])
    text = Page(make(tmp_path, ("plain", run), ("weak", weak))).text
    assert "Warnings" in text
    assert "weak: Mind <this>." in text
    assert "not made with the same attacks" in text


def test_runs_without_a_common_radius_are_warned_of(tmp_path: Path, run: Result, robust: Result) -> None:
    far = fabricate_run(tmp_path / "far", eps=(2,), attacks=("sea",))
    text = Page(make(tmp_path, ("plain", run), ("far", far))).text
    assert "no radius in common, so what is at the top cannot be compared: 8/255 of “plain”, 2/255 of “far”" in text
    assert "in common" not in Page(make(tmp_path, ("plain", run), ("robust", robust))).text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, ""),
        ({"window": 473}, "the same sliding window"),
        ({"long_side": 512}, "the same sliding window"),
        ({"save_images": "8bit"}, "the same rounding of adversarial images to 8 bits"),
        ({"save_images": "float"}, ""),
        ({"precision": "bf16"}, "the same precision"),
    ],
)
def test_runs_with_other_settings_are_warned_of(
    tmp_path: Path, run: Result, settings: dict[str, Any], words: str
) -> None:
    other = run.model_copy(update={"settings": run.settings | settings})
    found = [text for _, text in page._warnings({"a": run, "b": other})]
    assert len(found) == bool(words)
    assert all(f"not made with {words}, so that" in text for text in found)


@pytest.mark.parametrize(
    ("radii", "to_scale"),
    [
        ([0], True),
        ([0, 4], True),
        ([0, 0.25, 0.5, 1, 2, 4, 8], True),
        ([0, *range(1, 17)], True),
        ([0, 0.5, 4, 255], False),
    ],
)
def test_most_radii_are_labelled_on_the_axis(radii: list[float], to_scale: bool) -> None:
    places = figures._places([float(eps) for eps in radii])
    assert list(places) == radii
    assert (list(places.values()) == radii) == to_scale
    if not to_scale:
        assert list(places.values()) == list(range(len(radii)))


def test_curve_with_radii_of_every_size(tmp_path: Path) -> None:
    result = fabricate_run(tmp_path / "run", eps=(0, 0.5, 4, 255), attacks=("fgsm",))
    assert figures.curve({"a": result}, "aacc").startswith("data:image/svg")


def test_report_command_takes_a_folder_that_is_there_by_its_name(
    tmp_path: Path, run: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run.folder is not None
    for name in ("eps=4", "other"):
        shutil.copytree(run.folder, tmp_path / name)
    written = []
    monkeypatch.setattr(page, "write_report", lambda runs, out: written.append(runs))
    for given in ("eps=4", "mine=other", "mine=eps=4"):
        assert CliRunner().invoke(app, ["report", given, "other"]).exit_code == 0
    assert [runs[0] for runs in written] == [
        ("eps=4", Path("eps=4")), ("mine", Path("other")), ("mine", Path("eps=4"))
    ]  # fmt: skip


@pytest.mark.parametrize("out", ["", "folder", "file/report.html"])
def test_reports_that_cannot_be_written(tmp_path: Path, run: Result, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("mine")
    result = CliRunner().invoke(app, ["report", str(run.folder), "--out", out])
    assert isinstance(result.exception, UserError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def dom(file: Path, fragment: str = "") -> Page:
    """The page after its script has run, as Chromium sees it."""
    assert BROWSER is not None
    profile = file.parent / "profile"
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", f"--user-data-dir={profile}",
        "--virtual-time-budget=3000", "--dump-dom", file.as_uri() + fragment,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return Page(done.stdout.decode())


def panel_sources(parsed: Page) -> list[str]:
    """The pictures of the viewer's panels in their order."""
    tags = parsed.tags
    starts = [i for i, (_, a) in enumerate(tags) if (a.get("class") or "").startswith("panel")]
    found = (next(a for tag, a in tags[start:] if tag == "img") for start in starts)
    return [a.get("src") or "" if "hidden" not in a else "" for a in found]


@needs_browser
def test_script_shows_what_the_address_asks_for(tmp_path: Path) -> None:
    result = fabricate_run(tmp_path / "run", ids=[f"{ODD_ID} {n}" for n in range(3)], warnings=["w"])
    html = make(tmp_path, ("plain", result))
    data = Page(html).data
    entry = data["images"][-1]
    own = entry["runs"][0]["radii"]["4"]
    for fragment, attack in (("", own["chosen_for_miou"]), ("&attack=apgd-mce", "apgd-mce")):
        parsed = dom(tmp_path / "report.html", f"#image={quote(entry['id'], safe='')}&eps=4{fragment}")
        shown = own["shown"][attack]
        expected = [
            entry["original"], entry["label"], entry["runs"][0]["clean"],
            shown["prediction"], shown["adversarial"], shown["perturbation"],
        ]  # fmt: skip
        assert panel_sources(parsed) == expected
        assert ("h3", entry["id"]) in parsed.texts
        assert f"Prediction, {attack} at 4/255: {100 * own['accuracy'][attack]:.1f} % right" in parsed.text
        pressed = [tag.get("data-eps") for tag in parsed.all("button", **{"aria-pressed": "true"}) if "data-eps" in tag]
        # The radius of the class bars stays the largest.
        assert pressed == ["8", "4"]
        position = data["images"].index(entry)
        pressed = [tag["data-image"] for tag in parsed.all("button", **{"aria-pressed": "true"}) if "data-image" in tag]
        assert pressed == [str(position)]
        assert ("output", f"{position + 1} / 3") in parsed.texts


@needs_browser
@pytest.mark.parametrize("fragment", ["", "#scores", "#image=nowhere&eps=99&attack=none", "#image=%&eps=", "#%E0%A4%A"])
def test_script_starts_with_the_worst_image(tmp_path: Path, run: Result, robust: Result, fragment: str) -> None:
    html = make(tmp_path, ("plain", run), ("robust", robust))
    data = Page(html).data
    parsed = dom(tmp_path / "report.html", fragment)
    first = data["images"][0]
    assert ("h3", first["id"]) in parsed.texts
    expected = [first["original"], first["label"]]
    for own in first["runs"]:
        # 8/255 is the radius that both runs have.
        radius = own["radii"]["8"]
        shown = radius["shown"][radius["chosen_for_miou"]]
        expected += [own["clean"], shown["prediction"], shown["adversarial"] or "", shown["perturbation"] or ""]
    assert panel_sources(parsed) == expected
    accuracies = [f"{100 * value:.1f}" for value in first["runs"][0]["radii"]["8"]["accuracy"].values()]
    assert set(accuracies) <= {text for tag, text in parsed.texts if tag == "td"}


@needs_browser
def test_buttons_and_keys(tmp_path: Path, run: Result) -> None:
    html = make(tmp_path, ("plain", run))
    actions = """
    const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    press("ArrowLeft"); press("ArrowRight"); press("ArrowRight");
    document.getElementById("next").click();
    document.querySelector('#radii [data-eps="4"]').click();
    document.querySelector('#class-radii [data-eps="4"]').click();
    document.title = decodeURIComponent(location.hash);
    """
    (tmp_path / "report.html").write_text(
        html.replace("</body>", f"<script>{actions}</script></body>"), encoding="utf-8"
    )
    parsed = dom(tmp_path / "report.html")
    last = parsed.data["images"][2]["id"]
    assert ("title", f"#image={last}&eps=4") in parsed.texts
    assert ("h3", last) in parsed.texts
    for entry, clean, worst in zip(run.data.classes, run.clean.class_iou, run.at(4).worst_case.class_iou, strict=True):
        assert f"{entry.name} {percent(clean)} → {percent(worst)}" in parsed.text


@needs_browser
def test_phone_needs_no_sideways_scrolling(tmp_path: Path) -> None:
    names = ["Donaudampfschifffahrtsgesellschaftskapitän" * 2, *(f"class {i}" for i in range(20))]
    common = {"ids": ("x" * 150, "b"), "names": names, "eps": (0.25, 0.5, 1, 2, 4, 8, 16), "warnings": ["w" * 120]}
    a, b = fabricate_run(tmp_path / "a", **common), fabricate_run(tmp_path / "b", seed=1, **common)
    html = make(tmp_path, ("t" * 80, a), ("robust", b))
    measure = "<script>{ const root = document.documentElement;"
    measure += " parent.postMessage(`${root.scrollWidth - root.clientWidth} too wide`, '*'); }</script>"
    opened = html.replace("<details>", "<details open>").replace("</body>", measure + "</body>")
    (tmp_path / "report.html").write_text(opened, encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<!DOCTYPE html><html><head><title>-</title></head><body><script>"
        "addEventListener('message', (event) => { document.title = event.data; });</script>"
        "<iframe src='report.html' style='width:390px;height:800px;border:0'></iframe></body></html>"
    )
    assert ("title", "0 too wide") in dom(frame).texts


def test_result_round_trip(run: Result) -> None:
    """What the helper writes is what an evaluation would: it passes the schema."""
    assert read_result(run.folder) == run
    assert read_result(str(run.folder)) == run


def _drop(content: dict[str, Any]) -> None:
    del content["radii"][0]["attacks"][0]["scores"]["miou"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c.update(schema_version=2), "has schema version 2, but this robseg reads version 1"),
        (lambda c: c.pop("schema_version"), "has schema version None"),
        (_drop, r"is damaged: radii\.0\.attacks\.0\.scores\.miou: field required"),
        (lambda c: c["clean"]["class_iou"].pop(), r"clean\.class_iou has 3 values for 4 classes"),
        (lambda c: c["radii"][1]["worst_case"]["class_iou"].pop(), r"radii\.1\.worst_case\.class_iou has 3 values"),
        (lambda c: c["radii"].clear(), "radii is empty"),
        (lambda c: c["radii"][1]["attacks"].clear(), r"radii\.1 has no attacks"),
        (lambda c: c["radii"][0].update(eps=-1), r"radii\.0 .*an eps that is none \(-1"),
        (lambda c: c["data"]["classes"][1].update(colour=[1, 2, 300]), r"data\.classes\.1\.colour"),
    ],
)
def test_damaged_results_are_refused_with_the_field(
    tmp_path: Path, run: Result, damage: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert run.folder is not None
    content = json.loads((run.folder / "result.json").read_text())
    damage(content)
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"result.json.*{words}"):
        read_result(tmp_path)


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("[]")
    with pytest.raises(UserError, match="file holds no finished evaluation"):
        read_result(file)
    for content, words in ((b"[]", "no object"), (b"{", "damaged"), (b"\xff", "damaged")):
        (tmp_path / "result.json").write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_result(tmp_path)
    (tmp_path / "result.json").unlink()
    (tmp_path / "result.json").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_result(tmp_path)
