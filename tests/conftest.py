"""What many tests share: a small network with every kind of output, exported once, and a few street scenes."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from perception.types import TaskSpec

CLASSES = ("car", "bike", "sign")

OFFLINE = Path(__file__).parent / "offline"
CONNECTIONS = "PERCEPTION_TEST_CONNECTIONS"
if CONNECTIONS not in os.environ:
    descriptor, os.environ[CONNECTIONS] = tempfile.mkstemp(prefix="connections-")
    os.close(descriptor)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(OFFLINE), os.environ.get("PYTHONPATH"))))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


def pytest_addoption(parser):
    parser.addoption("--fault", metavar="ID", help="run only the tests of a fault of docs/faults.md, slow ones too")


def pytest_configure(config):
    if config.getoption("fault"):
        config.option.markexpr = ""  # slow ones too


def pytest_collection_modifyitems(config, items):
    """Keep the tests of the fault that was asked for."""
    if fault := config.getoption("fault"):
        kept = [item for item in items if any(fault in mark.args for mark in item.iter_markers("fault"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """S5: no test, and no command that a test ran, tried to leave this machine; else all of them fail."""
    if hasattr(session.config, "workerinput"):
        return
    log = Path(os.environ[CONNECTIONS])
    tried = log.read_text("utf-8") if log.is_file() else ""
    log.unlink(missing_ok=True)
    if tried:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nS5: connections were attempted:\n{tried}", file=sys.stderr)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Tests leave the user's cache of parsed label files alone, and so do the processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERCEPTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def street(tmp_path_factory) -> Path:
    """A tree of 12 street scenes to train on and 4 to measure, 64x128. Read only."""
    from perception.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("data") / "street"
    write_dataset(folder, 16, seed=3, size=(64, 128), validation_fraction=0.25)
    return folder


@pytest.fixture(scope="session")
def demo_street(tmp_path_factory) -> Path:
    """A tree of 18 street scenes to train on and 6 to measure, 128x256. Read only."""
    from perception.synthetic import write_dataset

    folder = tmp_path_factory.mktemp("data") / "street"
    write_dataset(folder, 24, seed=3, size=(128, 256), validation_fraction=0.25)
    return folder


@pytest.fixture(scope="session")
def demo_run(demo_street, tmp_path_factory) -> Path:
    """A run of the demo's recipe, 20 steps that nothing disturbed, without loader workers. Read only."""
    from command_line import run_perception, training_arguments

    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_perception(*training_arguments(demo_street), "data.workers=0", "--out", folder)
    return folder


@pytest.fixture
def fake_trainings(tmp_path, monkeypatch) -> Path:
    """Trainings of studies are made up, see fake_training.py; an empty folder but for their script."""
    from fake_training import fake_trainings

    fake_trainings(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(autouse=True)
def exact_floats():
    """Opening a session of ONNX Runtime makes the thread flush denormal numbers, which hypothesis rightly refuses."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def small_network():
    """A randomly initialized network with the interface of `perception.model.MultiTaskModel`; untrained but not
    trivial."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import interpolate, pad

    from perception.ops.nms import select_detections, stable_topk

    class Raw(NamedTuple):
        logits: Tensor

    class RawBoxes(NamedTuple):
        logits: Tensor
        boxes: Tensor

    class SmallNetwork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1) * 255)
            self.backbone.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1) * 255)
            self.tasks = {"detection": SimpleNamespace(config=SimpleNamespace(iou_threshold=0.6))}
            widths = (3, 16, 24, 32)
            self.trunk = nn.ModuleList(
                nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b in pairwise(widths)
            )
            self.boxes, self.scores = nn.Conv2d(32, 4, 1), nn.Conv2d(32, len(CLASSES), 1)
            self.pixels, self.distance = nn.Conv2d(24, 4, 1), nn.Conv2d(24, 1, 1)
            self.label = nn.Linear(32, 2)

        @property
        def specs(self) -> dict[str, TaskSpec]:
            return {
                spec.name: spec
                for spec in (
                    TaskSpec("detection", "instances", ("boxes", "scores", "labels"), CLASSES),
                    TaskSpec("segmentation", "dense", ("mask",), ("road", "sky", "car", "other")),
                    TaskSpec("depth", "dense", ("depth",), (), "m", (0.5, 80.0), 512.0),
                    TaskSpec("classification", "label", ("probabilities",), ("day", "night")),
                )
            }

        def keep_tasks(self, tasks: Sequence[str]) -> SmallNetwork:
            return self

        def forward(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, NamedTuple]:
            x = (images.float() - self.backbone.mean) / self.backbone.std
            levels = []
            for stage in self.trunk:
                x = stage(x)
                levels.append(x)
            middle, last = levels[1], levels[2]
            heads = {
                "detection": lambda: self._detect(last),
                "segmentation": lambda: Raw(self.pixels(middle)),
                "depth": lambda: Raw(self.distance(middle)),
                "classification": lambda: Raw(self.label(last.mean((2, 3)))),
            }
            return {name: head() for name, head in heads.items() if tasks is None or name in tasks}

        def predict(self, images: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
            return self.decode(self(images, tasks), images.shape[-2:])

        def decode(self, raws, size) -> dict[str, Tensor]:
            found = {}
            for name, raw in raws.items():
                if name == "detection":
                    scores, labels = (pad(part, (0, 400)) for part in raw.logits.sigmoid().max(2))
                    top = stable_topk(scores, 400)
                    boxes = pad(raw.boxes, (0, 0, 0, 400)).gather(1, top[:, :, None].expand(-1, -1, 4))
                    scores, labels = scores.gather(1, top), labels.gather(1, top)
                    kept = select_detections(boxes, scores * (scores > 0.3), labels, 0.6, 300)
                    found |= dict(zip(("detection.boxes", "detection.scores", "detection.labels"), kept, strict=True))
                elif name == "classification":
                    found["classification.probabilities"] = raw.logits.softmax(1)
                else:
                    values = interpolate(raw.logits, size=tuple(size), mode="bilinear")
                    if name == "segmentation":
                        found["segmentation.mask"] = values.argmax(1).float().to(torch.uint8)
                    else:
                        found["depth.depth"] = 0.5 * 160 ** values[:, 0].sigmoid()
            return found

        def _detect(self, features: Tensor) -> NamedTuple:
            height, width = features.shape[2:]
            y, x = torch.meshgrid(torch.arange(height) * 8.0, torch.arange(width) * 8.0, indexing="ij")
            centers = torch.stack([x, y, x, y]) + 4
            sides = self.boxes(features).exp() * 12 * torch.tensor([-1.0, -1, 1, 1])[:, None, None]
            logits = self.scores(features).flatten(2).transpose(1, 2)
            return RawBoxes(logits, (centers + sides).flatten(2).transpose(1, 2))

    torch.manual_seed(0)
    network = SmallNetwork()
    with torch.no_grad():  # statistics of a real pass, so that activations have a spread
        network.train()
        for _ in range(20):
            network.predict(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8))
        for module in (network.scores, network.pixels, network.distance):
            module.weight.mul_(8)
    return network.eval()


@pytest.fixture(scope="session")
def small_graph(small_network):
    """The graph of the small network with its raw outputs, for any size: what `export` makes its file of. Read only."""
    from perception.export.trace import trace_to_onnx

    return trace_to_onnx(small_network, small_network.specs, None)


@pytest.fixture(scope="session")
def export_small(small_network, small_graph):
    """`export` of the small network (or of one like it) that follows its code only once, which takes most of the time.

    nudge: changes the graph before it is checked.
    """
    from perception.export import graph
    from perception.export.export import export

    def export_it(out: Path, nudge=lambda model: None, **options):
        def again(model, specs, size, opset):
            kept = {entry.name for entry in small_graph.graph.output if entry.name.partition(".")[0] in specs}
            found = graph.keep_outputs(small_graph, kept)
            nudge(found)
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("perception.export.export.trace_to_onnx", again)
            return export(small_network, out, **{"parity_sizes": ((64, 64),), "parity_batch_sizes": (1,), **options})

    return export_it


@pytest.fixture(scope="session")
def exported(export_small, tmp_path_factory) -> Path:
    """The small network as an ONNX file. Read only: copy it to change it."""
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export_small(path, size=(96, 160), parity_sizes=((96, 160), (64, 64)), parity_batch_sizes=(1, 2))
    return path


@pytest.fixture(scope="session")
def exported_with_preprocessing(export_small, tmp_path_factory) -> Path:
    """As `exported`, with the letterbox to 96x160 inside. Read only."""
    path = tmp_path_factory.mktemp("inside") / "small.onnx"
    export_small(path, size=(96, 160), preprocess="embedded")
    return path
