"""Pages of many tasks with long names: nothing runs over its card, on a desktop, a small window and a phone."""

from __future__ import annotations

import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from report_pages import written

from perception.report import compare_page, group_page, grow_page, tune_page
from perception.report.gradients import render_gradients
from perception.report.plots import COLORS
from perception.types import TaskSpec

TASKS = (
    "detection", "segmentation", "depth", "classification", "lane_marking_segmentation_front",
    "pedestrian_intention_classification", "traffic_light_state_recognition", "surface_normal_estimation_dense",
)  # fmt: skip
METRICS = ("miou", "ece", "abs_rel", "abs_rel_aligned", "per_source<img>" + "x" * 40)
FACTS = {"command": "perception train " + "x" * 300, "date": "2026-01-02", "hardware": "A processor with a long name"}


def logged(tasks, evaluations: int = 1) -> list[dict]:
    generator = np.random.default_rng(0)
    steps = []
    for step in range(10, 210, 10):
        one = {
            f"{kind}/{task}": step / 10
            for kind in ("task_gradient_norm", "weight", "loss_ratio", "loss")
            for task in tasks
        }
        one |= {f"cosine/{a}/{b}": float(generator.normal(0, 0.3)) for a, b in itertools.combinations(tasks, 2)}
        steps.append({"step": step, "kind": "train", "loss": 3 / step, "lr": 1e-3, **one})
    measured = {f"{task}/{name}": 0.5 for task in tasks for name in METRICS}
    return steps + [{"step": 50 * (i + 1), "kind": "evaluation", **measured} for i in range(evaluations)]


def report(path, tasks):
    rows = {"a class with a very long name": dict.fromkeys(("iou", "precision", "recall", "ap", "pixels"), 0.5)}
    events = logged(tasks)
    metrics = {key: value for key, value in events[-1].items() if "/" in key}
    specs = {task: TaskSpec(task, "label", ("probabilities",), ("day", "dusk")) for task in tasks}
    written(
        path, title="a_recipe_with_a_name_that_is_rather_long_" * 2, specs=specs, metrics=metrics, events=events,
        tables=dict.fromkeys(tasks, rows), examples=[], metadata=FACTS, protocols=None,
    )  # fmt: skip


def compare(path, tasks):
    change = {"mean": 0.1, "values": [0.09, 0.11], "t_interval": (-0.05, 0.25)}
    of_task = {"change": change, "verdict": "better", "metrics": {"depth/abs_rel_aligned": {"control": 1, "joint": 2}}}
    against = {
        "tasks": dict.fromkeys(tasks, of_task), "delta_m": change, "verdict": "better", "excluded_tasks": [],
        "equal_budget": "Equal steps.",
    }  # fmt: skip
    network = {"parameters": 123_456_789, "milliseconds": 12.3}
    cost = {
        "networks": dict.fromkeys(("joint", *tasks), network), "ratio": {"time": 0.4, "parameters": 0.3},
        "sum_of_controls": network, "size": [256, 512], "protocol": "torch",
    }  # fmt: skip
    compare_page.write_compare_page(path, {
        "recipe": "street", "seeds": [0, 1], "steps": 10, "metadata": FACTS, "controls": {"steps": against},
        "cost": cost,
        "change_definition": "relative", "score_metrics": "score",
    })  # fmt: skip


def group(path, tasks):
    matrix = {one: dict.fromkeys(tasks, 0.01) for one in tasks}
    group_page.write_group_page(path, {
        "recipe": "street", "num_measurements": 20, "networks": 3, "metadata": FACTS, "verdict": "Two networks.",
        "tasks": tasks,
        "groups": [tasks[:2], tasks[2:]], "score": 0.02, "one_network_score": 0.01, "separate_networks_score": 0.0,
        "runner_up": {"groups": [tasks[:3], tasks[3:]], "score": 0.01}, "never_labeled_together": [tasks[:2]],
        "trunk_recipe": {"recipe": "one.yaml", "override": "perception train " + "x" * 200}, "affinity": matrix,
        "standard_error": matrix, "recipes": ["a.yaml"],
    })  # fmt: skip


def grow(path, tasks):
    old = {"verdict": "unchanged", "metrics": {f"{tasks[-1]}/abs_rel_aligned": {"before": 0.1, "after": 0.1}}}
    grow_page.write_grow_page(path, {
        "added_tasks": tasks[2:], "run": "runs/demo", "metadata": FACTS, "old": dict.fromkeys(tasks, old),
        "new": {f"{tasks[-1]}/abs_rel": 0.2}, "method": "frozen",
    })  # fmt: skip


def tune(path, tasks):
    changed = {"train.lr": 0.00123456, "model.backbone": "convnextv2_nano.fcmae_ft_in22k_in1k"}
    trials = [
        {"number": k, "state": "complete", "time": k + 1.0, "score": k / 9, "values": changed, "failure": ""}
        for k in range(4)
    ]
    tune_page.write_tune_page(path, {
        "recipe": "street", "trials": trials, "pareto_front": [0, 3], "metadata": FACTS, "baseline_milliseconds": 12.1,
        "size": [256, 512],
    })  # fmt: skip


PAGES = {"report": report, "compare": compare, "group": group, "grow": grow, "tune": tune}


class Places(HTMLParser):
    """The elements around every table and every wide drawing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        kind = dict(attributes).get("class") or ""
        if tag == "table":
            self.found.append((kind, [f"{name}.{its}" for name, its in self.open]))
        if tag in ("div", "article", "section", "figure", "details", "table"):
            self.open.append((tag, kind))

    def handle_endtag(self, tag):
        if self.open and self.open[-1][0] == tag:
            self.open.pop()


@pytest.mark.parametrize("name", PAGES)
def test_every_table_can_scroll_within_its_place_or_breaks_its_lines(tmp_path, name):
    PAGES[name](tmp_path / "page.html", TASKS)
    tables = Places((tmp_path / "page.html").read_text("utf-8")).found
    assert tables
    for kind, around in tables:
        breaks = kind == "forest" or around[-1].startswith("article")
        assert breaks or around[-1] == "div.wide", (kind, around)


@pytest.mark.parametrize(("count", "place"), [(2, "broad"), (4, "broad"), (5, "whole"), (8, "whole")])
def test_the_table_of_cosines_has_two_columns_of_the_page_and_a_row_of_its_own_for_many_tasks(count, place):
    assert f'<figure class="chart {place}"><figcaption>Mean cosine' in render_gradients(logged(TASKS[:count]))


def test_charts_of_many_lines_with_long_names_are_as_large_as_any_and_draw_no_more_than_there_are_colors():
    few, many = render_gradients(logged(TASKS[:2])), render_gradients(logged(TASKS))
    boxes = [set(re.findall(r'viewBox="([^"]*)"', drawn)) for drawn in (few, many)]
    assert boxes[0] == boxes[1]
    assert len(boxes[0]) == 1
    ((title, names),) = re.findall(r"<figcaption>(Cosines[^<]*)</figcaption><p class=lines>(.*?)</p>", many)
    assert title.endswith(f"the {len(COLORS)} farthest from 0 of 28")
    assert names.count("<span>") == len(COLORS)


MEASURE = """<script>onload = () => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const over = [], page = document.documentElement;
  if (page.scrollWidth > page.clientWidth) over.push('the page');
  document.querySelectorAll('article,figure,section,td,th,p,dd,li,h1,h2,table').forEach(e => {
    const free = getComputedStyle(e).overflowX == 'visible' && e.clientWidth > 0 && !e.closest('svg');
    if (free && e.scrollWidth > e.clientWidth + 1) over.push(e.tagName + ' ' + e.textContent.slice(0, 40));
  });
  document.querySelectorAll('svg text').forEach(t => {
    const own = t.getBoundingClientRect(), all = t.ownerSVGElement.getBoundingClientRect();
    if (own.left < all.left - 1 || own.right > all.right + 1) over.push('text ' + t.textContent);
  });
  parent.postMessage([innerWidth, over], '*');
}</script>"""
COLLECT = (
    "<script>const seen = []; onmessage = e => { seen.push(e.data); document.title = JSON.stringify(seen) }</script>"
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_over_its_card_in_a_browser(tmp_path, name):
    PAGES[name](tmp_path / "page.html", TASKS)
    text = re.sub(r"<meta http-equiv[^>]*>", "", (tmp_path / "page.html").read_text("utf-8"))
    (tmp_path / "page.html").write_text(text.replace("</head>", f"{MEASURE}</head>"), "utf-8")
    frames = (f'<iframe src="page.html" style="width:{width}px;height:900px"></iframe>' for width in (1400, 1000, 390))
    (tmp_path / "all.html").write_text(f"<title></title>{COLLECT}{''.join(frames)}", "utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--virtual-time-budget=9000",
               "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")  # fmt: skip
    command = ["chromium", *options, f"file://{tmp_path / 'all.html'}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    seen = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", found, re.DOTALL)[0]))
    assert dict(seen) == {1400: [], 1000: [], 390: []}
