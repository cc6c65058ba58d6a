"""Variants of a network to compare: torch, compiled, ONNX files."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import InferenceSession

from perception.bench.latency import CAMERA_IMAGE_SIZE, TOTAL, Stage
from perception.bench.partition import partition_graph
from perception.export import graph as passes
from perception.model import MultiTaskModel
from perception.ops.denormals import flush_denormals
from perception.runtime import onnx_file
from perception.runtime.manifest import InputSpec, extract_manifest
from perception.runtime.predictor import select_specs
from perception.runtime.session import open_session

# Prints the MiB that loading and running a file add. Linux does not use ru_maxrss, because it survives exec: a small
# process started by a large one would seem to need nothing.
PEAK_MEMORY = """
import pathlib, resource, sys, numpy
from perception.runtime.session import make_runner

def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

images = numpy.load(sys.argv[2])
empty = peak()
run = make_runner(open(sys.argv[1], "rb").read())
for _ in range(3):
    run(images)
print((peak() - empty) / 1024)
"""


class OnnxVariant:
    """An ONNX graph in ONNX Runtime. Each stage is a subgraph with its own session."""

    def __init__(
        self, name: str, model: ModelProto, tasks: Collection[str], embeds_preprocessing: bool = False
    ) -> None:
        self.name, self.embeds_preprocessing = name, embeds_preprocessing
        outputs = [entry.name for entry in model.graph.output if ".raw." not in entry.name]
        self._model = passes.keep_outputs(model, outputs)
        self._model_bytes = self._model.SerializeToString()
        self._tasks, self._threads = list(tasks), 1

    def build_stages(self, images: NDArray[np.uint8]) -> list[Stage]:
        """Build the stages, see `Variant.build_stages`."""
        values: dict[str, Any] = {self._model.graph.input[0].name: self._make_input(images)}
        found = []
        for piece in partition_graph(self._model, self._tasks):
            session = open_session(piece.model.SerializeToString(), self._threads)
            run = _make_stage(session, values)
            run()
            found.append((piece.label, run))
        session = open_session(self._model_bytes, self._threads)
        given = session.get_inputs()[0].name
        return [*found, (TOTAL, lambda: session.run(None, {given: values[given]}))]

    def _make_input(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The input: letterboxed images, or camera images if the graph includes the letterbox."""
        if not self.embeds_preprocessing:
            return images
        return np.random.default_rng(0).integers(0, 256, (len(images), *CAMERA_IMAGE_SIZE, 3), np.uint8)

    def set_threads(self, threads: int) -> None:
        """Set the number of threads per call."""
        self._threads = threads

    def measure_memory(self, images: NDArray[np.uint8]) -> float | None:
        """Measure the peak megabytes, see `Variant.measure_memory`."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            path.write_bytes(self._model_bytes)
            np.save(Path(folder) / "images.npy", self._make_input(images))
            command = [sys.executable, "-c", PEAK_MEMORY, str(path), f"{folder}/images.npy"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        return float(done.stdout) if done.returncode == 0 else None


def _make_stage(session: InferenceSession, values: dict[str, Any]) -> Callable[[], Any]:
    """A function that runs a subgraph on the results in ``values`` and adds its own results."""
    read = [entry.name for entry in session.get_inputs()]
    made = [entry.name for entry in session.get_outputs()]

    def run() -> None:
        values.update(zip(made, session.run(made, {name: values[name] for name in read}), strict=True))

    return run


class TorchVariant:
    """A `perception.model.MultiTaskModel` in eager torch: trunk, heads and decoding."""

    embeds_preprocessing = False

    def __init__(self, name: str, model: MultiTaskModel) -> None:
        self.name, self._model = name, model.eval()

    def build_stages(self, images: NDArray[np.uint8]) -> list[Stage]:
        """Build the stages, see `Variant.build_stages`."""
        model, left, pictures = self._model, {}, torch.from_numpy(images)
        found: list[Stage] = [("trunk", _in_inference_mode(lambda: left.update(streams=model.streams(pictures))))]
        for name, task in model.tasks.items():
            found.append(
                (f"{name} head", _in_inference_mode(lambda n=name, t=task: left.update({n: t(left["streams"][n])})))
            )
        for name in model.tasks:
            decode = _in_inference_mode(lambda n=name: model.decode({n: left[n]}, pictures.shape[-2:]))
            found.append((f"{name} decoding", decode))
        for _, run in found:
            run()
        return [*found, (TOTAL, _in_inference_mode(lambda: self._predict(pictures)))]

    def _predict(self, images: torch.Tensor) -> object:
        return self._model.predict(images)

    def set_threads(self, threads: int) -> None:
        """Set the number of threads per call."""
        torch.set_num_threads(threads)

    def measure_memory(self, images: NDArray[np.uint8]) -> float | None:
        """Measure the peak megabytes, see `Variant.measure_memory`."""
        return None


class CompiledVariant(TorchVariant):
    """The network compiled by torch up to its raw outputs, with eager decoding. It has no stages, only the total.

    Raises:
        RuntimeError: compilation fails, for example without a C++ compiler.
    """

    def __init__(self, name: str, model: MultiTaskModel, images: NDArray[np.uint8]) -> None:
        super().__init__(name, model)
        self._forward = torch.compile(model.forward)
        with _silence_warnings():
            try:
                _in_inference_mode(lambda: self._predict(torch.from_numpy(images)))()
            except Exception as error:  # the compiler raises many kinds of errors
                first = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise RuntimeError(f"torch cannot compile the network here: {first[:160]}") from error

    def build_stages(self, images: NDArray[np.uint8]) -> list[Stage]:
        """Build the stages, see `Variant.build_stages`."""
        run = _in_inference_mode(lambda: self._predict(torch.from_numpy(images)))
        with _silence_warnings():
            run()
        return [(TOTAL, run)]

    def _predict(self, images: torch.Tensor) -> object:
        return self._model.decode(self._forward(images), images.shape[-2:])


def _in_inference_mode(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with flush_denormals(), torch.inference_mode():
            return call()

    return run


@contextlib.contextmanager
def _silence_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def load_variant(name: str, path: Path, tasks: Collection[str] | None = None) -> tuple[OnnxVariant, InputSpec]:
    """Load the variant of an exported file.

    Args:
        name: name of the variant.
        path: ONNX file.
        tasks: tasks to keep; None = all.

    Returns:
        (variant, its input).

    Raises:
        PerceptionError: the file is not a valid export, or a task is unknown.
    """
    data = onnx_file.read_model(path)
    manifest = extract_manifest(data, str(path))
    chosen = select_specs(manifest.tasks, list(tasks) if tasks else None)
    kept = [f"{name}.{output}" for name, spec in chosen.items() for output in spec.outputs]
    graph = passes.keep_outputs(onnx.load_from_string(data), kept)
    return OnnxVariant(name, graph, list(chosen), manifest.input.embeds_preprocessing), manifest.input
