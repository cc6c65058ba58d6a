"""A graph that takes pictures as cameras give them: the letterbox before the network and the way back after it.

The same geometry as `perception.ops.image` and `perception.ops.restore`, in plain operators: uint8 RGB
[batch, height, width, 3] of any size goes in, and boxes, maps and quantities come out in pixels of these pictures. A
quantity that scales with the focal length is then as seen by a camera of ``canonical_focal`` pixels *of the picture*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, parser

from perception.export import graph as passes
from perception.export import letterbox_operators as text
from perception.export import parity
from perception.ops import image as geometry
from perception.ops.image import PAD_VALUE
from perception.runtime.session import runner
from perception.types import Frame, PerceptionError, TaskSpec

PLACED = "placed"
"""The letterboxed batch, float32 [batch, 3, H, W] in levels 0 to 255: what the network sees."""

PLACING_TOLERANCE = 1.5
"""Levels, of 255, by which the letterbox may differ from `perception.ops.image`, which rounds after every step."""

PICTURES = ((97, 131), (480, 640), (720, 1280), (1083, 611), (33, 500))
"""(height, width) of made-up pictures for the check."""


def wrap(core: ModelProto, specs: Mapping[str, TaskSpec], size: tuple[int, int]) -> ModelProto:
    """``core`` (input ``images`` uint8 [batch, 3, H, W] of ``size``) with the letterbox before and its inverse after.

    `PLACED` is an output too, for the parity check; `perception.export.graph.keep_outputs` takes it away. Outputs that
    belong to no task (raw ones) pass through. Raises PerceptionError for a task whose outputs have no known geometry.
    """
    opset = next(entry.version for entry in core.opset_import if not entry.domain)
    pieces = _Pieces(core, opset)
    ratios = {
        name: text.RATIO.format(name=name, above=above, below=below)
        for name, above, below in (("fitting", "crossed", "other"), ("shrinkage", "source", "place"))
    }
    given = {"images": "images", PLACED: PLACED}
    pieces.add(
        text.PLACE, given, "place/", height=size[0], width=size[1], pad=PAD_VALUE, sizes=text.FOUR_SIZES, **ratios
    )
    passes.set_shape(pieces.placed, ("batch", 3, *size))
    network = passes.prefixed(core, "", {"images": PLACED})
    pieces.graph.node.extend(network.graph.node)
    pieces.graph.initializer.extend(network.graph.initializer)
    pieces.add(text.SCALES, {"source": "place/source", "place": "place/place"}, "restore/")
    known = {"source": "place/source", "place": "place/place", "mean_scale": "restore/mean_scale"}
    ends = {entry.name: entry for entry in core.graph.output}
    for name, spec in specs.items():
        _restore(pieces, name, spec, ends, known)
    result = pieces.model
    passes.set_shape(result.graph.input[0], ("batch", "height", "width", 3))
    for entry in [*pieces.outputs, *ends.values(), pieces.placed]:
        result.graph.output.append(entry)
    return result


def _restore(
    pieces: _Pieces, name: str, spec: TaskSpec, ends: dict[str, ValueInfoProto], known: Mapping[str, str]
) -> None:
    """Bring the outputs of one task from the input's pixels to the picture's, under the names they had."""
    if spec.shape == "label":
        pieces.outputs += [ends.pop(f"{name}.{output}") for output in spec.outputs]
        return
    if spec.shape == "instances" and len(spec.outputs) != 3:
        raise PerceptionError(f"{name}: outputs {', '.join(spec.outputs)} cannot be brought back to picture pixels.")
    entries = [ends.pop(f"{name}.{output}") for output in spec.outputs]
    for entry in entries:
        pieces.rename(entry.name, f"{entry.name}/in")
    if spec.shape == "instances":
        kinds = ("boxes", "scores", "labels")
        given = {**known, "scale": "restore/scale", "border": "restore/border"}
        given |= {kind: f"{entry.name}/in" for kind, entry in zip(kinds, entries, strict=True)}
        given |= {f"found_{kind}": entry.name for kind, entry in zip(kinds, entries, strict=True)}
        pieces.add(text.BOXES, given, f"restore/{name}/")
    else:
        for i, entry in enumerate(entries):
            _restore_map(pieces, spec, entry, i, known)
    pieces.outputs += entries


def _restore_map(pieces: _Pieces, spec: TaskSpec, entry: ValueInfoProto, place: int, known: Mapping[str, str]) -> None:
    """One map of a dense task: its first is classes or the quantity, the others are shares that no lens changes."""
    given, prefix = {**known, "values": f"{entry.name}/in", "found": entry.name}, f"restore/{entry.name}/"
    passes.set_shape(entry, ("batch", "height", "width"))
    if spec.classes and place == 0:
        axes = {name: text.NEAREST.format(name=name, at=at) for at, name in enumerate(("rows", "columns"))}
        given["values"] = pieces.before_cast(given["values"])  # narrow types come last: TensorRT computes in none
        number = entry.type.tensor_type.elem_type
        pieces.add(text.CLASSES, given, prefix, dtype=passes.dtype_of(entry), number=number, **axes)
    else:
        scaled = spec.canonical_focal and place == 0
        scaling = "Mul (flat, mean_scale)" if scaled else "Identity (flat)"
        pieces.add(text.QUANTITY, given, prefix, scaling=scaling, sizes=text.FOUR_SIZES)


def verify(
    whole: ModelProto,
    core: ModelProto,
    specs: Mapping[str, TaskSpec],
    iou_thresholds: Mapping[str, float],
    images: Sequence[NDArray[np.uint8]] = (),
) -> dict[str, float]:
    """Compare a wrapped graph with its core between the package's own letterbox and restoring: largest differences.

    Pictures of odd and extreme sizes stand in beside ``images``. Raises `parity.Disagreement`.
    """
    plain = ModelProto()
    plain.CopyFrom(core)
    plain.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    wrapped, bare = runner(whole.SerializeToString()), runner(plain.SerializeToString())
    generator, comparison, worst = np.random.default_rng(0), parity.Comparison(specs, iou_thresholds), 0.0
    for picture in [*images[:4], *(parity.shapes(generator, *shape) for shape in PICTURES)]:
        where = f"a picture of {picture.shape[0]}x{picture.shape[1]}"
        found = wrapped(np.ascontiguousarray(picture[None]))
        placed = found[PLACED]
        frame = geometry.letterbox_frame((picture.shape[0], picture.shape[1]), (placed.shape[2], placed.shape[3]))
        if min(frame.scale) > 1 / 2.8:
            wanted = geometry.warp_image(picture, frame).transpose(2, 0, 1)
            worst = max(worst, float(np.max(np.abs(wanted - placed[0]))))
        if not worst <= PLACING_TOLERANCE:
            raise parity.Disagreement(f"{where} is placed {worst:.2f} levels away from what the network is trained on.")
        outputs = {key: value for key, value in bare(placed).items() if ".raw." not in key}
        comparison.add(where, restored(outputs, specs, frame), found)
    return {"placed": worst, **{f"{name} (inside)": value for name, value in comparison.finish().items()}}


def restored(outputs: Mapping[str, NDArray], specs: Mapping[str, TaskSpec], frame: Frame) -> dict[str, NDArray]:
    """The outputs of a network, with their batch dimension, in the pixels of the picture that ``frame`` placed."""
    found = dict(outputs)
    for name, spec in specs.items():
        keys = [f"{name}.{output}" for output in spec.outputs]
        first = outputs[keys[0]]
        if spec.shape == "instances":
            boxes = np.stack([geometry.unwarp_boxes(one, frame) for one in first])
            solid = np.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
            found |= {keys[0]: boxes * solid[..., None], keys[1]: outputs[keys[1]] * solid}
            found[keys[2]] = outputs[keys[2]] * solid
        elif spec.shape == "dense" and spec.classes:
            rows, columns = (
                (2 * np.arange(whole) + 1) * placed // (2 * whole)
                for whole, placed in zip(frame.source, frame.place[:1:-1], strict=True)
            )
            found[keys[0]] = first[:, rows[:, None], columns]
        for i, key in enumerate(keys):
            if spec.shape == "dense" and not (spec.classes and i == 0):
                factor = np.float32(np.mean(frame.scale) if spec.canonical_focal and i == 0 else 1)
                maps = [geometry.unwarp_map(one, frame, smooth=True) for one in outputs[key]]
                found[key] = np.stack(maps) * factor
    return found


class _Pieces:
    """A graph that is put together from pieces of text and from another graph."""

    def __init__(self, core: ModelProto, opset: int) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(core)
        self.graph, self.opset = self.model.graph, opset
        for field in (self.graph.node, self.graph.initializer, self.graph.output):
            del field[:]
        self.graph.input[0].CopyFrom(core.graph.input[0])
        self.outputs: list[ValueInfoProto] = []
        self.placed = ValueInfoProto()

    def add(self, words: str, given: Mapping[str, str], prefix: str, **values: object) -> None:
        """Append a piece. given: its names that are values of the whole graph; its others get the prefix."""
        piece = parser.parse_model(text.HEAD.format(opset=self.opset) + words.format(**values))
        passes.hold_constants(piece)
        ready = passes.prefixed(piece, prefix, given)
        self.graph.node.extend(ready.graph.node)
        self.graph.initializer.extend(ready.graph.initializer)
        if PLACED in given:
            self.placed.CopyFrom(ready.graph.output[0])

    def before_cast(self, name: str) -> str:
        """What the value ``name`` is cast from, where its maker is nothing but a cast, which then goes."""
        maker = next(node for node in self.graph.node if name in node.output)
        if maker.op_type != "Cast":
            return name
        self.graph.node.remove(maker)
        return maker.input[0]

    def rename(self, old: str, new: str) -> None:
        """Call a value of the graph by another name, wherever it is made or read."""
        for node in self.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
