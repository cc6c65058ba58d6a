"""The report: whole, safe and self-contained whatever a run came to."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from report_pages import SPECS, events, example, parsed, written

from perception.report import ReportExample, read_events
from perception.report.events import Series, downsample_series, extract_series, smooth_values
from perception.report.format import format_decimal, format_metric_name
from perception.report.plots import render_chart, render_metric_charts, render_training_charts
from perception.types import ImageLabel, TaskSpec


def test_everything_is_in_the_page(tmp_path):
    text = written(tmp_path / "report.html")
    page = parsed(text)
    for words in (
        "street",
        "0.400",
        "AP 50",
        "seed: 0",
        "perception train street.yaml",
        "0.5 to 80 m",
        "Learning rate",
    ):
        assert words in page.text
    assert page.tags.count("h2") == len(["Results", "Training", *SPECS, "Provenance"])
    assert "car" in page.text
    assert "1 class is absent from the ground truth" in page.text


def test_the_page_asks_nothing_of_any_network(tmp_path):
    text = written(tmp_path / "report.html")
    assert all(re.match(r"data:image/jpeg;base64,|#", value) for value in parsed(text).loaded)
    assert "http://" not in text
    assert "https://" not in text
    assert not {"script", "link", "iframe", "object", "form"} & set(parsed(text).tags)
    assert "default-src 'none'" in text


def test_at_most_three_worst_and_three_best_of_each_task(tmp_path):
    text = written(tmp_path / "report.html")
    for task in SPECS:
        shown = re.findall(rf"{task}-(\d)", text)
        assert shown == list("012876"), task
    assert len(text) < 3_000_000


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>\x1b[2J\u202e"
    spec = TaskSpec("labels", "label", ("probabilities",), (evil, "b"))
    text = written(
        tmp_path / "report.html",
        title=evil,
        specs={evil: SPECS["depth"], "labels": spec},
        metrics={f"{evil}/{evil}": 1.0, evil: 2.0},
        tables={"labels": {evil: {evil: 0.5}}},
        events=[{"step": 1, "kind": "train", f"loss/{evil}": 1.0}, {"step": 2, "kind": "train", f"loss/{evil}": 2.0}],
        examples=[ReportExample(evil, "labels", 0.5, np.zeros((8, 8, 3), np.uint8),
        {"labels": ImageLabel(np.eye(2)[0])},
                          {"labels": ImageLabel(np.eye(2)[0])})],
        recipe=evil,
        metadata={evil: evil},
        protocols={evil: evil},
    )  # fmt: skip
    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "alert(1)" in parsed(text).text


def test_an_empty_run_has_a_report(tmp_path):
    nothing = {
        "metrics": {},
        "tables": {},
        "events": [],
        "examples": [],
        "recipe": "",
        "metadata": {},
        "protocols": None,
    }
    page = parsed(written(tmp_path / "report.html", **nothing))
    assert "street" in page.text
    assert "img" not in page.tags


def test_missing_annotations_unknown_qualities_and_repeated_examples(tmp_path):
    lost = ReportExample("lost", "depth", 0.1, np.zeros((9, 9, 3), np.uint8), {}, {"depth": None})
    unjudged = example("depth", "unjudged", math.nan)
    same = example("segmentation", "same")
    text = written(tmp_path / "report.html", examples=[lost, unjudged, same, same])
    assert "lost" in text
    assert "unjudged" not in text
    assert text.count(">same<") == 1


def test_large_images_are_made_small(tmp_path):
    text = written(tmp_path / "report.html", examples=[example("detection", size=(2160, 3840))])
    assert set(re.findall(r"<img width=(\d+) height=(\d+)", text)) == {("440", "248")}


def test_numbers_that_json_cannot_hold(tmp_path):
    page = parsed(written(tmp_path / "report.html", metrics={"detection/ap": None, "detection/ap50": math.inf}))
    assert "–" in page.text


def test_charts_show_what_was_logged():
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", "".join(render_training_charts(list(events()))))
    assert titles == ["Loss, total", "Loss, detection", "Task weights", "Learning rate", "Speed"]
    titles = re.findall(r"<figcaption>(.*?)</figcaption>", "".join(render_metric_charts(list(events()), "detection")))
    assert titles == ["AP, higher is better"]
    assert render_training_charts([]) == render_metric_charts([], "detection") == []


def test_a_metric_of_a_new_task_has_a_chart():
    found = render_metric_charts([{"step": step, "kind": "evaluation", "pose/pck": 0.5} for step in (1, 2, 3)], "pose")
    assert ["<svg" in drawn and "pck" in drawn for drawn in found] == [True]


@pytest.mark.parametrize("kind", ["evaluation", "quick_evaluation"])
def test_fewer_than_three_evaluations_are_one_table_of_every_number(kind):
    logged = [
        {"step": step, "kind": kind, "depth/abs_rel": step / 1000, "depth/sq_rel": 0.2, "depth/ause": math.nan}
        for step in (50, 100, 150)
    ]
    for few in (logged[:1], logged[:2]):
        (table,) = render_metric_charts([*few, *few], "depth")  # a resumed run logs a step twice
        assert "<svg" not in table
        told = parsed(table).text
        assert [f"step {event['step']}" in told for event in logged] == [event in few for event in logged]
        assert all(words in told for words in ("abs rel", "sq rel (m)", "AUSE", "0.050", "0.200", "–")), told
    assert [drawn.count("<svg") for drawn in render_metric_charts(logged, "depth")] == [1]
    assert render_metric_charts(logged[:1], "pose") == []


def test_a_chart_is_labeled_and_takes_its_ink_from_the_page():
    drawn = render_chart(
        "Loss", [Series("a", [0, 1000], [1.0, 2.0]), Series("b", [0, 1000], [2.0, 3.0])], "loss", show_markers=True
    )
    for words in (">step<", ">loss<", ">a<", ">b<", ">1k<", "currentColor", 'aria-label="Loss"'):
        assert words in drawn, words
    assert "#010203" not in drawn
    assert "<g id" not in drawn
    assert drawn == render_chart(
        "Loss", [Series("a", [0, 1000], [1.0, 2.0]), Series("b", [0, 1000], [2.0, 3.0])], "loss", show_markers=True
    )


def test_a_long_run_makes_no_large_chart():
    whole = Series("loss", list(range(100_000)), np.random.default_rng(0).random(100_000).tolist())
    assert len(render_chart("Loss", [whole], "loss", smooth=True)) < 60_000
    short = downsample_series(whole, 300)
    assert len(short.steps) == 300
    assert np.mean(short.values) == pytest.approx(np.mean(whole.values), abs=1e-3)


def test_pyplot_and_its_global_state_are_not_used():
    code = "import sys, perception.report; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_of_a_repeated_step_the_last_counts_and_nan_is_left_out():
    found = [{"step": 3, "x": 1}, {"step": 1, "x": 5}, {"step": 3, "x": 2.5}, {"step": 4, "x": math.nan}, {"step": 5}]
    assert extract_series(found, "x") == Series("x", [1, 3], [5, 2.5])


def test_smoothing_is_a_running_mean():
    assert smooth_values([1, 2, 3, 4, 5], 3) == pytest.approx([1.5, 2, 3, 4, 4.5])
    assert smooth_values([1, 2], 0) == [1, 2]


def test_events_are_read_back_even_where_a_kill_cut_the_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + '\n{"step": 3, "lo')
    assert read_events(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.warns(UserWarning, match="line 2 is damaged"):
        assert read_events(path) == [{"step": 1}, {"step": 3}]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (12.345, "12.35"), (1234.5, "1,234.5"), (math.nan, "–"), (None, "–"), (-math.inf, "−∞")],
)
def test_numbers(value, expected):
    assert format_decimal(value) == expected


def test_labels():
    assert format_metric_name("abs_rel_aligned") == "abs rel, aligned"
    assert format_metric_name("something_new") == "something new"
