"""Results of studies as sentences and text tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from perception.mtl.delta_m import ChangeEstimate
from perception.report.tune_page import format_values


def format_task_verdict(task: str, change: ChangeEstimate) -> str:
    """One sentence about a task. Only changes that Student's interval confirms are called transfer."""
    if math.isnan(change.mean):
        return f"{task}: the baseline has no score above zero to compare with."
    size = f"{abs(change.mean):.1%}"
    way = "better" if change.mean > 0 else "worse"
    if change.t_interval is None:
        return f"{task}: {size} {way} than alone with this one seed, which cannot be separated from noise."
    low, high = change.t_interval
    span = f"95 % interval {low:+.1%} to {high:+.1%}, {len(change.values)} seeds"
    if high < 0:
        return f"{task}: negative transfer, {size} worse than alone ({span})."
    if low > 0:
        return f"{task}: positive transfer, {size} better than alone ({span})."
    return f"{task}: {size} {way} than alone, within the noise ({span})."


def format_delta_m(change: ChangeEstimate) -> str:
    """Describe Delta_m in one sentence."""
    if math.isnan(change.mean):
        return "No task has a score to compare."
    text = f"Delta_m is {change.mean:+.1%}"
    if change.t_interval is None or change.bootstrap_interval is None:
        return f"{text} with one seed; an interval needs at least two."
    student = f"{change.t_interval[0]:+.1%} to {change.t_interval[1]:+.1%}"
    resampled = f"{change.bootstrap_interval[0]:+.1%} to {change.bootstrap_interval[1]:+.1%}"
    few = " With so few seeds the bootstrap interval is too narrow; use Student's." if len(change.values) < 8 else ""
    return f"{text} (95 % intervals over {len(change.values)} seeds: Student {student}, bootstrap {resampled}).{few}"


def format_comparison(result: Mapping[str, Any]) -> Iterator[str]:
    """Terminal lines for the content of compare.json."""
    for kind, against in result["controls"].items():
        yield ""
        yield f"Compared with single-task baselines of equal {kind}, seeds {', '.join(map(str, result['seeds']))}:"
        yield f"  {'':32s} {'alone':>9s} {'joint':>9s} {'change':>9s}"
        for its in against["tasks"].values():
            arrow = "" if its["higher_is_better"] else " (lower is better)"
            alone, joint = (math.fsum(its[key]) / len(its[key]) for key in ("control", "joint"))
            yield (
                f"  {its['metric'] + arrow:32s} {alone:9.4f} {joint:9.4f} {_format_percent(its['change']['mean']):>9s}"
            )
        yield from (f"  {its['verdict']}" for its in against["tasks"].values())
        yield f"  {against['verdict']}"
    cost = result["cost"]
    if cost:
        one, total = cost["networks"]["joint"], cost["sum_of_controls"]
        yield ""
        yield f"One network versus all baselines in sequence ({cost['protocol']}, {cost['size'][0]}x{cost['size'][1]}):"
        yield f"  parameters {one['parameters']:,} against {total['parameters']:,}: {cost['ratio']['parameters']:.2f} x"
        yield (
            f"  time {one['milliseconds']:.1f} ms against {total['milliseconds']:.1f} ms: {cost['ratio']['time']:.2f} x"
        )


def _format_percent(change: float) -> str:
    return "–" if math.isnan(change) else f"{change:+.1%}"


def format_affinities(result: Mapping[str, Any]) -> Iterator[str]:
    """Terminal lines for the content of group.json."""
    tasks, width = result["tasks"], max(14, *map(len, result["tasks"]))
    yield f"Relative decrease of a task's loss by a step of another task ({result['num_measurements']} measurements):"
    yield f"  {'step of v':{width}s}" + "".join(f" {name:>{width}s}" for name in tasks)
    for i in tasks:
        cells = (result["affinity"][i][j] for j in tasks)
        yield f"  {i:{width}s}" + "".join(f" {'–' if value is None else f'{value:+.3%}':>{width}s}" for value in cells)
    yield result["verdict"]
    if trunks := result["trunk_recipe"]:
        yield f"Alternative: one network with {len(result['groups'])} trunks: {trunks['recipe']} ({trunks['override']})"


def format_trials(result: Mapping[str, Any]) -> Iterator[str]:
    """Terminal lines for the content of tune.json."""
    by_number = {trial["number"]: trial for trial in result["trials"]}
    states = [trial["state"] for trial in result["trials"]]
    yield f"{len(states)} trials: " + ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    yield "Pareto front of score and time (relative to the recipe's network), fastest first:"
    for trial in (by_number[number] for number in result["pareto_front"]):
        yield f"  {trial['score']:.4f}  {trial['time']:.2f} x  {trial['folder']}  {format_values(trial)}"
    for trial in result["trials"]:
        if trial["failure"]:
            yield f"  failed: trial {trial['number']}: {trial['failure']}"


def format_growth(result: Mapping[str, Any]) -> Iterator[str]:
    """Terminal lines for the content of grow.json."""
    yield from (its["verdict"] for its in result["old"].values())
    for name, value in result["new"].items():
        yield f"{name:36s} {'–' if value is None else f'{value:.4f}'}"
