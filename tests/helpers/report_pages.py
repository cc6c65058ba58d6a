"""Reports with made-up content."""

import math
from html.parser import HTMLParser

import numpy as np

from perception.metrics.depth import DepthMetric
from perception.report import ReportExample, write_report
from perception.types import DenseMap, ImageLabel, Instances, TaskSpec

SPECS = {
    "detection": TaskSpec("detection", "instances", ("boxes", "scores", "labels"), ("car", "bus")),
    "segmentation": TaskSpec("segmentation", "dense", ("mask",), ("road", "sky")),
    "depth": TaskSpec("depth", "dense", ("depth",), unit="m", limits=(0.5, 80.0)),
    "classification": TaskSpec("classification", "label", ("probabilities",), ("day", "dusk")),
}


VOID_ELEMENTS = {"meta", "img", "br"}


MAY_STAY_OPEN = {"li", "tr", "td", "th", "thead", "tbody", "dt", "dd"}


class Checker(HTMLParser):
    """Collects what a page would load, and complains of elements that are closed out of order."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open, self.text, self.tags = [], [], "", []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "action")]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID_ELEMENTS:
            self.open.pop()

    def handle_endtag(self, tag):
        while self.open and self.open[-1] != tag and self.open[-1] in MAY_STAY_OPEN:
            self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text):
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    return checker


def events(steps=200):
    for step in range(1, steps + 1):
        loss = 2 / step
        yield {
            "step": step, "time": 1.0, "kind": "train", "lr": 1e-3, "loss": loss, "images_per_second": 30.0,
            "loss/detection": loss, "loss/detection/box": loss / 2, "loss/detection/class": loss / 2,
            "loss/depth": None, "weight/detection": 1 + step / 100, "weight/depth": 1.0,
        }  # fmt: skip
        if step % 50 == 0:
            yield {
                "step": step,
                "time": 1.0,
                "kind": "evaluation",
                "detection/ap": step / 400,
                "detection/ap_small": 0.1,
            }


def example(task, id="a", quality=0.5, size=(60, 80)):
    values = np.zeros(size, np.uint8)
    found = {
        "detection": Instances(np.array([[5, 5, 40, 40]], np.float32), np.array([0]), np.array([0.9], np.float32)),
        "segmentation": DenseMap(values, np.ones(size, bool)),
        "depth": DenseMap(np.full(size, 3, np.float32), np.ones(size, bool)),
        "classification": ImageLabel(np.array([0.8, 0.2], np.float32)),
    }
    true = {**found, "classification": ImageLabel(np.array([0.0, 1.0], np.float32))}
    return ReportExample(id, task, quality, np.full((*size, 3), 90, np.uint8), found, true)


def written(path, **changes):
    content = {
        "title": "street",
        "specs": SPECS,
        "metrics": {
            "detection/ap": 0.4,
            "detection/ap50": math.nan,
            "depth/abs_rel": 0.1,
            "depth/abs_rel_aligned": 0.05,
        },
        "tables": {"detection": {"car": {"ap": 0.4, "count": 12.0}, "bus": {"ap": math.nan, "count": 0.0}}},
        "events": list(events()),
        "examples": [example(task, f"{task}-{k}", k / 9) for task in SPECS for k in range(9)],
        "recipe": "seed: 0\n",
        "metadata": {"command": "perception train street.yaml", "date": "2026-01-02"},
        "protocols": {"depth": DepthMetric((0.5, 80.0)).protocol},
    } | changes
    write_report(path, **content)
    return path.read_text("utf-8")
