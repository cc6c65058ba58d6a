"""What training says on the terminal: one line for an event, in the columns there are; the rest is in metrics.jsonl."""

from __future__ import annotations

import json
import math
import re

import pytest

from perception.engine.console_lines import abbreviate_names, format_evaluation_line, format_training_line
from perception.engine.log import TrainLog

FOUR = {
    "detection": {"ap": 0.04545, "ap50": 0.209, "ap_small": math.nan, "ap_medium": math.nan},
    "segmentation": {"miou": 0.7467, "pixel_accuracy": 0.8697},
    "depth": {"abs_rel": 0.6921, "rmse": 1.316},
    "classification": {"top1": 0.75, "ece": 0.03853},
}
EIGHT = FOUR | {f"lane_segmentation_of_camera_{k}": {"miou": 0.123456, "ece": 0.1} for k in range(4)}


def evaluation(tasks=FOUR, score: float = 0.53333, best: float = 0.53333) -> dict[str, float]:
    metrics = {f"{task}/{name}": value for task, own in tasks.items() for name, value in own.items()}
    return {**metrics, "score": score, "best": best}


def training(tasks=FOUR) -> dict[str, float]:
    losses = {f"loss/{task}": 0.123456 for task in tasks}
    parts = {f"loss/{task}/part": 0.1 for task in tasks}
    return {"lr": 0.00413234, **losses, **parts, "loss": 4.0684, "gradient_norm": 4.1, "weight/depth": 1.0}


def test_an_evaluation_tells_each_tasks_first_number_whether_it_is_the_best_and_what_is_nan():
    assert format_evaluation_line("15/60", "evaluation", evaluation(), 200) == (
        "step 15/60  score 0.533 (best so far)  detection ap 0.045  segmentation miou 0.747  depth abs_rel 0.692  "
        "classification top1 0.750  2 nan"
    )
    worse = format_evaluation_line("30/60", "quick_evaluation", evaluation(score=0.41), 200)
    assert worse.startswith("step 30/60  quick score 0.410 (best 0.533)   detection")
    unknown = evaluation({"depth": {"abs_rel": math.nan}}, math.nan, -math.inf)
    told = format_evaluation_line("1/9", "evaluation", unknown, 100)
    assert re.sub(" +", " ", told) == "step 1/9 score nan depth abs_rel nan 1 nan"


@pytest.mark.parametrize("columns", [80, 100, 120])
@pytest.mark.parametrize("tasks", [FOUR, EIGHT], ids=["four", "eight"])
def test_lines_keep_to_the_columns_that_there_are(tasks, columns):
    told = format_evaluation_line("15000/60000", "quick_evaluation", evaluation(tasks, 0.41), columns)
    assert len(told) <= columns
    assert re.match(r"step 15000/60000  quick (score )?0\.410", told)
    assert told.endswith("  2 nan") == (columns > 80 and tasks is FOUR)
    line = format_training_line("15000/60000", training(tasks), 3723.4, columns)
    assert len(line) <= columns
    assert line.startswith("step 15000/60000  loss 4.068")
    assert line.endswith("lr 0.00413   ETA 1:02:03")


def test_at_100_columns_four_tasks_are_told_and_at_80_too():
    for score in (0.41, 0.53333):
        told = format_evaluation_line("6000/60000", "evaluation", evaluation(score=score), 100)
        assert all(f"  {word} 0." in told for word in ("ap", "miou", "abs_rel", "top1")), told
        assert "(best" in told
        for step, kind in (("15/60", "evaluation"), ("15000/60000", "quick_evaluation")):
            told = format_evaluation_line(step, kind, evaluation(score=score), 80)
            assert len(told) <= 80
            assert all(f"  {word} 0." in told for word in ("det", "seg", "dep", "cla")), told
            assert (" best" in told) == (score > 0.5)
    line = format_training_line("6000/60000", training(), None, 100)
    assert all(f" {word} 0.123" in line for word in ("det", "seg", "dep", "cla")), line


def test_tasks_that_begin_alike_stay_apart_and_those_without_room_are_counted():
    assert abbreviate_names(["lane", "lane_left", "lane_lead", "depth"]) == ["lane", "lane_lef", "lane_lea", "dep"]
    assert re.search(r"\+\d more", format_evaluation_line("1/9", "evaluation", evaluation(EIGHT), 80))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_log_prints_one_line_for_an_evaluation_and_keeps_every_number(tmp_path, capsys, monkeypatch, terminal):
    for name, value in (("COLUMNS", "100"), ("TERM", "xterm"), ("FORCE_COLOR", "1"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value) if terminal or name != "FORCE_COLOR" else monkeypatch.delenv(name, False)
    with TrainLog(tmp_path, 0, 60, tensorboard=False) as log:
        log.write_event(10, "train", training())
        log.write_event(15, "evaluation", evaluation())
        log.print_message("Warning: \x1b[2J" + "word " * 40)
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    lines = [line.strip() for line in re.split(r"[\r\n]", written) if line.startswith("step")]
    assert [line.split("  ")[0] for line in lines] == (["step 15/60"] if terminal else ["step 10/60", "step 15/60"])
    assert all(len(line) <= 100 and line.endswith(" top1 0.750  2 nan") for line in lines[-1:])
    assert "\\x1b[2J" in written
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert told[1].keys() >= evaluation().keys()
    assert told[0].keys() >= training().keys()
    assert told[1]["detection/ap_small"] is None
