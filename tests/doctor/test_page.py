"""The doctor's page, its JSON and its command."""

from __future__ import annotations

import errno
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_trees import noise_image, write_image
from doctor_cases import build_recipe, image_path, run_doctor

from perception.cli import main
from perception.doctor import Diagnosis, diagnosis
from perception.files.safe_write import DiskFullError
from perception.report import doctor_page
from perception.types import ConfigError

EVIL = "<img src=x onerror=alert(1)>&\"'"


@pytest.fixture(scope="module")
def sick(tmp_path_factory) -> Diagnosis:
    """A diagnosis with a finding of every severity, images that leak, and names that are no HTML."""
    root = tmp_path_factory.mktemp("sick")
    mapping = build_recipe(root)
    mapping["name"] = EVIL
    image_path(root).write_bytes(b"no image")
    (root / "train/maps/images/001.jpg").rename(root / f"train/maps/images/{EVIL}.jpg")
    mask = write_image(root / "train/maps/masks/001.png", np.full((48, 64), 99, np.uint8))
    mask.rename(mask.with_name(f"{EVIL}.png"))
    write_image(root / "train/coco/images/unlisted.jpg", noise_image(78))
    mapping["data"]["train"][0]["weight"] = 500
    write_image(root / "train/depth/images/000.jpg", noise_image(77))
    write_image(root / "validation/depth/images/001.jpg", noise_image(77))
    mapping["data"]["train"][3]["name"] = EVIL.replace("/", "")
    return run_doctor(root, mapping)


class Page(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_page_holds_everything_and_asks_nothing_of_any_network(sick):
    text = doctor_page.render_page(sick)
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object"}
    assert "default-src 'none'" in text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if tag == "img":
            assert (attributes["src"] or "").startswith("data:image/jpeg;base64,")
    for finding in sick.findings:
        assert f"<p class=kind>{finding.code}</p>" in text
    for summary in sick.summaries:
        assert doctor_page.escape(summary.where) in text
    assert {f.severity for f in sick.findings} == {"error", "warning", "note"}
    assert {"damaged_image", "invalid_labels", "leaked_images"} <= {f.code for f in sick.findings}


def test_names_of_files_and_sources_are_no_html(sick):
    text = doctor_page.render_page(sick)
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_samples_of_every_source_and_pairs_are_drawn(sick):
    text = doctor_page.render_page(sick)
    assert all(len(state.previews) >= 2 for state in sick.states)
    depth = next(state for state in sick.states if state.where == "train/depth")
    assert all(len(sample.jpegs) == 2 for sample in depth.previews)
    assert "Train/validation leakage" in text
    assert "identical files" in text
    pictures = sum(len(sample.jpegs) for state in sick.states for sample in state.previews)
    assert text.count("<img ") >= pictures + 2


def test_the_json_says_the_same(sick, tmp_path):
    said = doctor_page.write_doctor_report(tmp_path / "out", sick)
    assert str(tmp_path / "out" / "doctor.html") in said
    data = json.loads((tmp_path / "out" / "doctor.json").read_text())
    assert data["healthy"] is False
    assert [finding["code"] for finding in data["findings"]] == [finding.code for finding in sick.findings]
    assert {source["where"] for source in data["sources"]} == {summary.where for summary in sick.summaries}
    boxes = next(source for source in data["sources"] if source["where"] == "validation/boxes")
    assert boxes["tasks"][0]["class_chart"]["counts"] == [3, 3]


def test_a_folder_that_cannot_be_written(sick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out DIR"):
        doctor_page.write_doctor_report(tmp_path / "file", sick)


def test_a_full_disk_leaves_no_part_of_the_page(sick, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(
        DiskFullError, match=r"doctor\.html cannot be written: No space left on device\. Free some space"
    ):
        doctor_page.write_doctor_report(tmp_path / "out", sick)
    assert not list((tmp_path / "out").iterdir())


def test_the_name_of_a_recipe_is_no_path(sick):
    assert re.fullmatch(r"[\w-]+", doctor_page.make_folder_name(sick))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command in a folder of its own, without looking at the environment; (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "_examine_environment", lambda *_: ([], {"Python": "3"}))

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["doctor", *arguments, "--workers", "0"])
        return code, *capsys.readouterr()

    return run


def written(root: Path, mapping: dict[str, Any]) -> str:
    (root / "recipe.yaml").write_text(json.dumps(mapping))
    return str(root / "recipe.yaml")


def test_the_command_on_healthy_data(command, tmp_path):
    code, out, err = command(written(tmp_path, build_recipe(tmp_path)), "data.size=[64, 96]")
    assert code == 0
    assert "No errors, no warnings." in out
    assert "Page: doctor/small/doctor.html" in out
    assert (tmp_path / "doctor/small/doctor.json").is_file()
    assert "examine" in err
    assert "8/8" in err


def test_the_command_where_something_must_be_mended(command, tmp_path):
    path = written(tmp_path, build_recipe(tmp_path))
    image_path(tmp_path).write_bytes(b"")
    code, out, _ = command(path, "--out", str(tmp_path / "there"), "--max-images", "3")
    assert code == 1
    assert "ERROR (1)" in out
    assert "NOTE" in out
    assert (tmp_path / "there/doctor.html").is_file()
    code, _, _ = command(path, "--tasks", "depth")
    assert code == 0
    code, out, _ = command(path, "data.root=/nowhere")
    assert code == 1
    assert "No data folder at /nowhere" in out


def test_the_command_without_a_recipe(command, tmp_path):
    code, out, err = command("nothing.yaml")
    assert (code, out) == (2, "")
    assert "No recipe at nothing.yaml" in err
    path = written(tmp_path, build_recipe(tmp_path))
    assert command(path, "--tasks", "pose")[0] == 2
    with pytest.raises(SystemExit):
        main(["doctor", path, "--max-images", "0"])


def test_the_rest_of_the_recipe_is_checked_too(tmp_path):
    from perception.cli.data import _check_recipe

    mapping = {"data": {}, "tasks": {"depth": None}, "train": {"stepz": 1}}
    said = _check_recipe(None, mapping)
    assert isinstance(said, str)
    assert "Did you mean 'steps'" in said
    settings = _check_recipe(None, {**mapping, "train": {}})
    assert isinstance(settings, dict)
    assert settings["depth"]["limits"] == [0.5, 80.0]
