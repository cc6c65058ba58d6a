"""How the tasks got along, in the report: what is drawn, and that advice needs evidence."""

from __future__ import annotations

import numpy as np
from report_pages import parsed, written

from perception.report.gradients import advise, compute_pairs, render_gradients, render_heat_map

TASKS = ["detection", "depth", "free_space"]


def log(steps: int = 40, cosine: float = 0.1, spread: float = 0.1, norms=(1.0, 2.0, 0.5), paces=(0.4, 0.5, 0.6)):
    random = np.random.default_rng(0)
    for step in range(1, steps + 1):
        drawn = random.normal(cosine, spread, 200).clip(-1, 1)  # the looks of the window
        yield {
            "step": step, "kind": "train",
            **{f"task_gradient_norm/{task}": norm for task, norm in zip(TASKS, norms, strict=True)},
            **{f"weight/{task}": 1.0 for task in TASKS},
            **{f"loss_ratio/{task}": pace for task, pace in zip(TASKS, paces, strict=True)},
            "cosine/detection/depth": float(drawn[0]), "cosine/detection/free_space": 0.2,
        }  # fmt: skip


def advice(events) -> list[str]:
    later = events[len(events) // 2 :]
    return advise(events, later, TASKS, compute_pairs(later, TASKS))


def test_the_section_draws_curves_and_the_matrix():
    page = parsed(render_gradients(list(log(cosine=-0.3))))
    for words in ("Gradient norms", "Loss relative", "Cosines between", "Mean cosine between", "free space", "+0.20"):
        assert words in page.text, words
    assert page.tags.count("svg") == 3


def test_it_is_part_of_the_page_where_gradients_were_looked_at(tmp_path):
    assert "Task interaction" in written(tmp_path / "a.html", events=list(log()))
    assert "Task interaction" not in written(tmp_path / "b.html")
    assert render_gradients([{"kind": "train", "step": 1, "task_gradient_norm/depth": 1.0}]) == ""


def test_pairs_that_were_never_seen_together_have_no_number():
    cells = render_heat_map(TASKS, compute_pairs(list(log()), TASKS))
    assert cells.count("<td>–") == 2  # depth and free space, both ways
    assert cells.count("class=self") == 3
    assert 'conflict"' not in cells
    assert render_heat_map(TASKS, compute_pairs(list(log(cosine=-0.4)), TASKS)).count('class="apart conflict"') == 2


def test_a_quiet_run_gets_no_advice():
    assert advice(list(log())) == ["No task stands out: no lasting conflict, no dominant gradient, no lagging task."]


def test_advice_on_conflict_needs_an_interval_below_zero_and_enough_looks():
    assert advice(list(log(cosine=-0.4)))[0].startswith(
        "Detection and depth conflict on their shared parameters: cosine -0.37 (95 % "
    )
    assert "stands out" in advice(list(log(cosine=-0.02, spread=0.5)))[0]
    assert "Too few gradient samples" in advice(list(log(10, cosine=-0.4)))[0]


def test_advice_on_a_gradient_that_drowns_the_others_and_a_task_that_lags():
    assert (
        "Depth dominates the shared parameters: its weighted gradient is 40 times that of free space"
        in advice(list(log(norms=(1.0, 20.0, 0.5))))[0]
    )
    assert (
        "Free space lags: 0.900 of its first loss remains, compared with detection's 0.100"
        in advice(list(log(paces=(0.1, 0.2, 0.9))))[0]
    )


def test_advice_begins_with_see_saws():
    alarm = {
        "step": 30,
        "kind": "negative_transfer",
        "falling": "depth",
        "rising": "free_space",
        "fall": -0.1,
        "rise": 0.2,
    }
    assert advice([*log(cosine=-0.4), alarm, {**alarm, "step": 40}])[0].startswith(
        "Negative transfer: depth became worse in validation while free space improved, beyond noise, at step 30, 40."
    )
