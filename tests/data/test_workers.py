"""L1 through the command: a loader worker that raises, is killed, hangs or has no shared memory ends the training with
a named error, a kept checkpoint, and no process left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from command_line import python_path
from data_trees import coco_tree

from perception import checkpoint

TRAP = '''
import multiprocessing, os, resource, signal, sys, time
from pathlib import Path
from perception.data import DATASETS
from perception.data.formats.coco import CocoReader

class Trap(CocoReader):
    """In a worker, once the training has a checkpoint, it does something dreadful."""

    def read_annotations(self, index, size=None):
        armed = multiprocessing.parent_process() is not None and Path(os.environ["ARMED"]).exists()
        {
            "raise": lambda: {}["absent"],
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "hang": lambda: time.sleep(1000),
            "memory": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
            "": lambda: None,
        }[os.environ["DEED"] if armed else ""]()
        return super().read_annotations(index, size)

if __name__ == "__main__":
    import trap
    from perception.cli import main
    DATASETS["coco"] = trap.Trap
    sys.exit(main(sys.argv[1:]))
'''
RECIPE = """
name: trapped
data:
  root: {root}
  size: [64, 96]
  workers: 2
  timeout: 5
  train: [{{name: boxes, labels: [{{format: coco, images: coco/images, annotations: coco/boxes.json}}]}}]
model: {{backbone: {{name: test_efficientnet, weights: none}}}}
tasks: {{detection: {{classes: [vehicle, pedestrian]}}}}
train: {{steps: 1000000, batch_size: 2, warmup_steps: 1, checkpoint_every: 3, threads: 1, tensorboard: false}}
"""
WORDS = {
    "raise": ("KeyError: 'absent'", "boxes/coco/images/"),
    "kill": ("exited unexpectedly", "boxes/coco/images/"),
    "hang": ("no answer for 5 s (data.timeout)", "boxes/coco/images/"),
    "memory": ("shared memory", "--shm-size"),
}


@dataclass
class Ended:
    """How a training ended: exit code, error stream, its run folder, seconds from the first checkpoint to the end, and
    what was left of its processes some seconds later."""

    code: int
    said: str
    run: Path
    seconds: float
    left: list[int]


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> dict[str, Ended]:
    """All trainings at once: most of their time they wait."""
    root = tmp_path_factory.mktemp("trapped")
    coco_tree(root, 8)
    (root / "trap.py").write_text(TRAP)
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    started = {}
    for deed in WORDS:
        run = root / deed
        command = [sys.executable, str(root / "trap.py"), "train", str(root / "recipe.yaml"), "--out", str(run)]
        own = {"DEED": deed, "ARMED": str(run / "checkpoints" / "last"), "PYTHONPATH": python_path(root)}
        errors = (root / f"{deed}.err").open("w")
        started[deed] = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, **own}, start_new_session=True
        )
        errors.close()
    begun: dict[str, float] = {}
    over: dict[str, float] = {}
    deadline = time.monotonic() + 120
    while len(over) < len(started) and time.monotonic() < deadline:
        for deed, process in started.items():
            if deed not in begun and (root / deed / "checkpoints" / "last").exists():
                begun[deed] = time.monotonic()
            if deed not in over and process.poll() is not None:
                over[deed] = time.monotonic()
        time.sleep(0.05)
    for process in started.values():
        process.kill()
    deadline = time.monotonic() + 10
    while any(session(process.pid) for process in started.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        deed: Ended(
            process.wait(),
            (root / f"{deed}.err").read_text(),
            root / deed,
            over.get(deed, float("inf")) - begun.get(deed, float("-inf")),
            session(process.pid),
        )
        for deed, process in started.items()
    }


def session(leader: int) -> list[int]:
    """The living processes of a session (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(number) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


@pytest.mark.fault("L1")
@pytest.mark.skipif(sys.platform != "linux", reason="it looks at Linux's list of processes")
@pytest.mark.parametrize("deed", WORDS)
def test_the_command_ends_with_a_named_error_a_checkpoint_and_no_orphan(ended, deed):
    end = ended[deed]
    assert end.code == 2, end.said
    for word in WORDS[deed]:
        assert word in end.said
    assert end.said.rstrip().splitlines()[-1].startswith("perception train: ")
    assert end.seconds < 60
    assert end.left == []
    assert checkpoint.load(end.run).step >= 3
