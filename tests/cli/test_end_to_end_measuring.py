"""An exported file is measured as its run is; a run that was moved works; what is no number is an error."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml
from command_line import run_perception

from perception import cli, runs
from perception.export import evaluate_onnx, from_run
from perception.types import ConfigError, PerceptionError


@pytest.fixture(scope="module")
def files(demo_run, tmp_path_factory):
    """The run's exported files, by their letterbox."""
    folder = tmp_path_factory.mktemp("files")
    found = {kind: folder / f"{kind}.onnx" for kind in ("external", "embedded")}
    for kind, path in found.items():
        from_run.export(demo_run, path, preprocess=kind)
    return found


def recipe_of(run) -> dict:
    return yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))


@pytest.mark.fault("X1")
@pytest.mark.parametrize("kind", ["external", "embedded"])
def test_a_file_has_the_metrics_of_its_run(demo_run, files, kind, tmp_path):
    wanted = runs.evaluate(demo_run, overrides=["data.workers=0"]).metrics
    overrides = ["data.workers=0"]
    found = evaluate_onnx.evaluate(
        files[kind], data=demo_run / "recipe.yaml", overrides=overrides, out=tmp_path / "out"
    )
    assert found.num_images == 6
    assert found.metrics.keys() == wanted.keys()
    loose = 0.03 if kind == "embedded" else 2e-3  # the letterbox inside does not round to whole levels
    for name, value in wanted.items():
        assert found.metrics[name] == pytest.approx(value, rel=loose, abs=loose, nan_ok=True), name
    written = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert written["segmentation/miou"] == pytest.approx(found.metrics["segmentation/miou"])
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_file_in_its_run_folder_needs_no_data_and_one_elsewhere_does(demo_run, files, tmp_path):
    shutil.copy(files["external"], tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match=r"lies in no run folder.*Give --data FILE"):
        evaluate_onnx.evaluate(tmp_path / "model.onnx")
    shutil.copy(demo_run / "recipe.yaml", tmp_path)
    done = run_perception("evaluate", tmp_path / "model.onnx", "--tasks", "classification", "--size", "64x96")
    assert done.stdout.startswith("6 images\nclassification/top1")


def test_data_of_other_classes_is_refused(demo_run, files, tmp_path):
    recipe = recipe_of(demo_run)
    recipe["tasks"]["segmentation"]["classes"] = ["lava", "sky"]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    with pytest.raises(ConfigError, match=r"tasks\.segmentation\.classes are lava, sky, and .* was exported with road"):
        evaluate_onnx.evaluate(files["external"], data=tmp_path / "other.yaml")
    alone = {"data": {key: recipe["data"][key] for key in ("root", "validation")}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(alone), "utf-8")
    found = evaluate_onnx.evaluate(files["external"], data=tmp_path / "data.yaml", tasks=["depth"])
    assert found.metrics["depth/abs_rel"] > 0


def test_a_run_whose_data_was_moved_is_exported_and_measured_by_an_override(
    demo_run, demo_street, tmp_path, monkeypatch
):
    """By the very override that the error names."""
    run, street = tmp_path / "run", tmp_path / "street"
    shutil.copytree(demo_run, run, symlinks=True)
    shutil.copytree(demo_street, street)
    monkeypatch.setattr("perception.recipe.parse", _elsewhere(tmp_path / "gone"))
    options = ["export", str(run), "--precision", "fp16", "--budget", "1", "--out", str(tmp_path / "half.onnx")]
    assert cli.main(options) == 2
    assert cli.main([*options, f"data.root={street}", "data.workers=0"]) == 0
    assert cli.main(["evaluate", str(run), f"data.root={street}", "data.workers=0"]) == 0
    assert (
        cli.main(["evaluate", str(tmp_path / "half.onnx"), "--data", str(run / "recipe.yaml"), f"data.root={street}"])
        == 0
    )


def _elsewhere(root):
    from perception import recipe

    parse = recipe.parse
    return lambda text, overrides=(), where="": parse(text, [f"data.root={root}", *overrides], where)


@pytest.mark.fault("E2")
@pytest.mark.parametrize("task", ["detection", "depth", "classification"])
def test_a_network_that_gives_no_numbers_is_an_error_that_names_the_task(demo_run, files, monkeypatch, task, capsys):
    """By the command, of the run and of the file; `predict` goes on and flags it."""
    fit = runs.checkpoint.load_into_model

    def ruined(model, checkpoint):
        fit(model, checkpoint)
        for name, value in model.tasks[task].named_parameters():
            if name.endswith("bias"):
                value.data.fill_(torch.nan)

    monkeypatch.setattr(runs.checkpoint, "load_into_model", ruined)
    assert cli.main(["evaluate", str(demo_run), "data.workers=0"]) == 2
    said = capsys.readouterr().err
    assert f": {task}: " in said
    assert "not finite" in said


@pytest.mark.fault("E2")
def test_a_file_that_gives_no_numbers_is_an_error_too(demo_run, files, monkeypatch):
    from perception.runtime.predictor import Predictor

    run = Predictor.run

    def ruined(self, images):
        found = run(self, images)
        return found | {"detection.scores": found["detection.scores"] * float("nan")}

    monkeypatch.setattr(Predictor, "run", ruined)
    with pytest.raises(PerceptionError, match=r"detection: \d+ of \d+ scores .* not finite"):
        evaluate_onnx.evaluate(files["external"], data=demo_run / "recipe.yaml", overrides=["data.workers=0"])


@pytest.mark.parametrize("command", ["predict", "ood fit", "label"])
def test_swapped_arguments_are_told(demo_run, files, demo_street, tmp_path, command, capsys):
    picture = next(demo_street.rglob("*.png"))
    for network in (files["external"], demo_run):
        out = ["--out", str(tmp_path / "out")]
        assert cli.main([*command.split(), str(picture), str(network), *out]) == 2
        said = capsys.readouterr().err
        assert f"perception {command} {network} {picture}" in said
        assert "Pickles" not in said


def test_an_exported_file_is_no_run_and_the_error_says_so(files, capsys):
    assert cli.main(["export", str(files["external"])]) == 2
    assert "is an exported file" in capsys.readouterr().err
