"""Trainings that are made up: a script without torch that writes what a training writes, and stops as one stops."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from perception.studies import job_runner
from perception.studies.job_runner import TrainingRun

TRAINING = """
import json, math, os, re, signal, sys, time
folder, kind = sys.argv[1], sys.argv[2]
recipe = open(f"{folder}/recipe.yaml").read()
def setting(key):
    text = re.search(rf"^  {key}: (.*)$", recipe, re.M).group(1)
    return 0.0 if text == "null" else float(text)
steps, every, lr = int(setting("steps")), int(setting("evaluate_every")), setting("lr")
os.makedirs(f"{folder}/checkpoints", exist_ok=True)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
signal.signal(signal.SIGINT, signal.SIG_IGN)
log = f"{folder}/metrics.jsonl"
done = len(open(log).readlines()) if os.path.exists(log) else 0
with open(f"{folder}/life.txt", "a") as file:
    file.write(f"start {done} {time.time()}\\n")
if kind == "broken" or lr > 0.9:
    print("perception train: no data", file=sys.stderr)
    sys.exit(2)
for step in range(done + 1, steps + 1):
    time.sleep(0.2 if kind == "slow" else 0.02)
    event = {"step": step, "kind": "train", "loss": 1.0}
    if step == steps or every and step % every == 0:
        score = step / steps / (1 + abs(math.log10(lr / 1e-3)))
        event = {"step": step, "kind": "evaluation", "depth/abs_rel": 0.25, "score": score}
    with open(log, "a") as file:
        file.write(json.dumps(event) + "\\n")
    os.makedirs(f"{folder}/checkpoints/step_{step:08d}", exist_ok=True)
    if stop:
        sys.exit(143)
    if kind == "dies" and step == 2:
        print("perception train: 10 steps in a row had no finite loss")
        sys.exit(2)
open(f"{folder}/report.html", "w").write("report")
with open(f"{folder}/life.txt", "a") as file:
    file.write(f"end {steps} {time.time()}\\n")
"""


def fake_trainings(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make up the trainings of studies; the first word of a run's name says what it does."""
    script = folder / "training.py"
    script.write_text(TRAINING)

    def command(run: TrainingRun) -> list[str]:
        return [sys.executable, "-S", str(script), str(run.folder), run.name.partition(" ")[0]]

    patch.setattr(job_runner, "build_command", command)
    patch.setattr(job_runner, "POLL_SECONDS", 0.02)


def run_times(run: Path) -> list[list[str]]:
    """When a run began and ended: [["start", step, time], ["end", step, time], ...]."""
    return [line.split() for line in (run / "life.txt").read_text().splitlines()]
