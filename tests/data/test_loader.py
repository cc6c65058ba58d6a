"""Batches: the same for any number of workers and from any step on; failures of workers are named (L1)."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_trees import CLASSES, coco_tree, depth_maps_tree, image_labels_tree, label_maps_tree, open_tree

from perception.data import loader
from perception.data.collate import collate
from perception.data.loader import make_evaluation_loader, make_train_loader
from perception.data.mixture import Mixture
from perception.types import DataError, DenseMap, ImageLabel, Instances

SIZE = (64, 96)
TASKS = tuple(CLASSES)


@pytest.fixture
def sources(tmp_path):
    trees = {"boxes": coco_tree, "maps": label_maps_tree, "depth": depth_maps_tree, "scenes": image_labels_tree}
    return [open_tree(tmp_path, tree(tmp_path), name=name) for name, tree in trees.items()]


def flat(batch) -> list:
    """Everything in a batch as comparable values."""
    values = [batch.images, batch.ids, batch.sources, batch.cameras, batch.transforms]
    for task in TASKS:
        for annotation in batch.annotations[task]:
            names = () if annotation is None else type(annotation).__dataclass_fields__
            values += [type(annotation).__name__, *(getattr(annotation, name) for name in names)]
    return values


def equal(first, second) -> bool:
    return all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else np.array_equal(a, b)
        for a, b in zip(flat(first), flat(second), strict=True)
    )


def test_a_batch_has_every_task_with_tensors_in_input_pixels(sources):
    batch = next(iter(make_train_loader(Mixture(sources, SIZE), TASKS, 8, steps=1)))
    assert batch.images.shape == (8, 3, *SIZE)
    assert batch.images.dtype == torch.uint8
    assert list(batch.annotations) == list(TASKS)
    shapes = {"boxes": "detection", "maps": "segmentation", "depth": "depth", "scenes": "classification"}
    for i, source in enumerate(batch.sources):
        labelled = [task for task in TASKS if batch.annotations[task][i] is not None]
        assert labelled == [shapes[source]]
        match batch.annotations[labelled[0]][i]:
            case Instances(boxes, labels, _, ignore, classes):
                assert (boxes.dtype, labels.dtype, classes.dtype) == (torch.float32, torch.int64, torch.bool)
                assert boxes.shape == (len(labels), 4)
                assert ignore is None or ignore.dtype == torch.bool
            case DenseMap(values, valid):
                assert values.dtype == (torch.float32 if source == "depth" else torch.uint8)
                assert values.shape == valid.shape == SIZE
                assert valid.dtype == torch.bool
            case ImageLabel(values, _):
                assert values.dtype == torch.float32
    assert batch.transforms == [None] * 8
    assert len(batch) == 8


def test_tensors_do_not_share_memory_with_the_readers(sources):
    mixture = Mixture(sources[3:], SIZE)
    batch = next(iter(make_train_loader(mixture, TASKS, 2, steps=1)))
    for label in batch.annotations["classification"]:
        label.values.fill_(7)
    again = next(iter(make_train_loader(mixture, TASKS, 2, steps=1)))
    assert all(label.values.max() == 1 for label in again.annotations["classification"])


@pytest.mark.fault("T1")
def test_any_number_of_workers_and_any_start_give_the_same_batches(sources):
    state = torch.get_rng_state()
    whole = list(make_train_loader(Mixture(sources, SIZE, seed=5), TASKS, 4, steps=6))
    for workers in (0, 2):
        rest = list(make_train_loader(Mixture(sources, SIZE, seed=5), TASKS, 4, 6, start_step=2, workers=workers))
        assert len(rest) == 4
        assert all(equal(a, b) for a, b in zip(whole[2:], rest, strict=True))
    assert torch.equal(state, torch.get_rng_state())  # a resumed run draws the same dropout


@pytest.mark.fault("E3")
def test_ranks_unite_to_one_process(sources):
    mixture = Mixture(sources, SIZE)
    one = next(iter(make_train_loader(mixture, TASKS, 6, steps=1)))
    parts = [next(iter(make_train_loader(mixture, TASKS, 6, steps=1, rank=r, world_size=2))) for r in range(2)]
    assert sorted(one.ids) == sorted(parts[0].ids + parts[1].ids)
    mine = [one.ids.index(id) for id in parts[1].ids]
    assert torch.equal(one.images[mine], parts[1].images)
    with pytest.raises(DataError, match="A batch of 2 over 3 ranks"):
        make_train_loader(mixture, TASKS, 2, steps=1, world_size=3)


@pytest.mark.fault("E3")
@pytest.mark.parametrize(("batch_size", "world", "workers"), [(1, 1, 0), (4, 2, 0), (5, 3, 0), (3, 1, 2)])
def test_evaluation_sees_every_image_once(sources, batch_size, world, workers):
    ids = []
    for rank in range(world):
        batches = make_evaluation_loader(sources, TASKS, SIZE, batch_size, rank, world, workers)
        seen = list(batches)
        assert len(batches) == len(seen)
        for batch in seen:
            assert len(batch.images) == len(batch) <= batch_size
            assert all(frame.input_size == SIZE for frame in batch.transforms)
            maps = [m for task in ("segmentation", "depth") for m in batch.annotations[task] if m is not None]
            assert all(isinstance(m.values, np.ndarray) and m.values.shape == (48, 64) for m in maps)
            ids += batch.ids
    assert sorted(ids) == sorted(source.image_id(i) for source in sources for i in range(len(source)))


@pytest.mark.fault("D1")
def test_evaluation_raises_at_a_damaged_image(sources, tmp_path):
    path = tmp_path / "coco/images/001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"001\.jpg is a truncated or damaged JPEG"):
            list(make_evaluation_loader(sources, TASKS, SIZE, 2, workers=workers))


@pytest.mark.fault("D1")
def test_what_workers_skip_arrives_in_the_training_process(sources, tmp_path):
    path = tmp_path / "coco/images/001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    mixture = Mixture(sources, SIZE)
    assert len(list(make_train_loader(mixture, TASKS, 4, steps=4, workers=1))) == 4
    assert list(mixture.skipped) == ["boxes/coco/images/001.jpg"]


class Trap:
    """A reader that does something dreadful at its second image."""

    tasks = ("classification",)

    def __init__(self, images: list[Path], deed: str) -> None:
        self.images, self.deed, self.problems, self.class_maps = images, deed, {}, {}

    def read_annotations(self, index, size=None):
        if index == 1:
            {
                "raise": lambda: {}["absent"],
                "exit": lambda: os._exit(3),
                "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
                "hang": lambda: time.sleep(600),
            }[self.deed]()
        return {"classification": ImageLabel(np.ones(2, np.float32))}

    def camera(self, index):
        return None


@pytest.mark.fault("L1")
@pytest.mark.parametrize("deed", ["raise", "exit", "kill", "hang"])
def test_a_worker_that_fails_is_a_named_error_and_leaves_no_process(sources, deed, monkeypatch):
    monkeypatch.setattr(loader, "WORKER_POLL_SECONDS", 1.0)
    from perception.data.dataset import DataSource

    paths = [picture.path for picture in sources[0].records]
    source = DataSource("trap", 1.0, [Trap(paths, deed)])
    mixture = Mixture([source], SIZE)
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"trap/.*001\.jpg") as caught:
        list(make_train_loader(mixture, TASKS, 4, steps=3, workers=1, timeout=3 if deed == "hang" else 20))
    assert time.monotonic() - begun < 30
    words = {"raise": "KeyError", "exit": "exited unexpectedly", "kill": "exited unexpectedly", "hang": "no answer"}
    assert words[deed] in str(caught.value)
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


class Stuck(Trap):
    """Every image takes for ever, as on a network drive that went away."""

    def read_annotations(self, index, size=None):
        time.sleep(600)


@pytest.mark.fault("L1")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_many_workers_that_hang_are_not_waited_for_one_by_one(sources, monkeypatch):
    monkeypatch.setattr(loader, "WORKER_POLL_SECONDS", 1.0)
    from perception.data.dataset import DataSource

    source = DataSource("trap", 1.0, [Stuck([picture.path for picture in sources[0].records], "hang")])
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"no answer for 2 s"):
        list(make_train_loader(Mixture([source], SIZE), TASKS, 4, steps=9, workers=4, timeout=2))
    assert time.monotonic() - begun < 15  # 5 s for each worker, and the start, without
    assert not multiprocessing.active_children()


@pytest.mark.fault("L1")
def test_killing_the_training_process_leaves_no_orphan(sources, tmp_path):
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "from data_trees import coco_tree, open_tree\n"
        "from perception.data.loader import make_train_loader; from perception.data.mixture import Mixture\n"
        "if __name__ == '__main__':\n"
        "    source = open_tree(Path(sys.argv[1]), coco_tree(Path(sys.argv[1])))\n"
        "    for batch in make_train_loader(Mixture([source], (64, 96)), ['detection'], 4, steps=10**9, workers=2):\n"
        "        print('batch', flush=True)\n"
    )
    command = [sys.executable, str(script), str(tmp_path), str(Path(__file__).parents[1] / "helpers")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"batch\n"
        assert len(_session(process.pid)) >= 4  # itself, the fork server, two workers
        process.kill()
    deadline = time.monotonic() + 20
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _session(process.pid)


def _session(leader: int) -> list[int]:
    """The living processes of a session (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_stopping_early_ends_the_workers(sources):
    batches = iter(make_train_loader(Mixture(sources, SIZE), TASKS, 4, steps=100, workers=2))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


def test_collate_of_unlabeled_samples(sources):
    mixture = Mixture(sources[:1], SIZE)
    batch = collate([mixture.load_sample(0), mixture.load_sample(1)], ("depth", "detection"))
    assert batch.annotations["depth"] == [None, None]
    assert all(isinstance(a, Instances) for a in batch.annotations["detection"])
