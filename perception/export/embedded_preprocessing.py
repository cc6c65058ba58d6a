"""A graph that takes images as cameras give them: the letterbox before the network and the way back after it.

The same geometry as `perception.ops.image` and `perception.ops.postprocess`, in plain operators: uint8 RGB
[batch, height, width, 3] of any size goes in, and boxes, maps and quantities come out in pixels of these images. A
quantity that scales with the focal length is then as seen by a camera of ``canonical_focal`` pixels *of the image*.
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
from perception.runtime.session import make_runner
from perception.types import ImageTransform, PerceptionError, TaskSpec

LETTERBOXED = "letterboxed"
"""The letterboxed batch, float32 [batch, 3, H, W] in levels 0 to 255: what the network sees."""

LETTERBOX_TOLERANCE = 1.5
"""Levels, of 255, by which the letterbox may differ from `perception.ops.image`, which rounds after every step."""

TEST_IMAGE_SIZES = ((97, 131), (480, 640), (720, 1280), (1083, 611), (33, 500))
"""(height, width) of made-up images for the check."""


def embed_letterbox(core: ModelProto, specs: Mapping[str, TaskSpec], size: tuple[int, int]) -> ModelProto:
    """``core`` (input ``images`` uint8 [batch, 3, H, W] of ``size``) with the letterbox before and its inverse after.

    `LETTERBOXED` is an output too, for the parity check; `perception.export.graph.keep_outputs` takes it away. Outputs
    that
    belong to no task (raw ones) pass through. Raises PerceptionError for a task whose outputs have no known geometry.
    """
    opset = next(entry.version for entry in core.opset_import if not entry.domain)
    pieces = _GraphBuilder(core, opset)
    ratios = {
        name: text.ROUNDED_RATIO.format(name=name, above=above, below=below)
        for name, above, below in (("fitting", "crossed", "other"), ("shrinkage", "source", "place"))
    }
    given = {"images": "images", LETTERBOXED: LETTERBOXED}
    pieces.append(
        text.LETTERBOX,
        given,
        "place/",
        height=size[0],
        width=size[1],
        pad=PAD_VALUE,
        sizes=text.FIXED_RANK_SIZES,
        **ratios,
    )
    passes.set_shape(pieces.letterboxed, ("batch", 3, *size))
    network = passes.add_prefix(core, "", {"images": LETTERBOXED})
    pieces.graph.node.extend(network.graph.node)
    pieces.graph.initializer.extend(network.graph.initializer)
    pieces.append(text.SCALE_FACTORS, {"source": "place/source", "place": "place/place"}, "restore/")
    known = {"source": "place/source", "place": "place/place", "mean_scale": "restore/mean_scale"}
    ends = {entry.name: entry for entry in core.graph.output}
    for name, spec in specs.items():
        _append_restoring(pieces, name, spec, ends, known)
    result = pieces.model
    passes.set_shape(result.graph.input[0], ("batch", "height", "width", 3))
    for entry in [*pieces.outputs, *ends.values(), pieces.letterboxed]:
        result.graph.output.append(entry)
    return result


def _append_restoring(
    builder: _GraphBuilder,
    name: str,
    spec: TaskSpec,
    output_infos: dict[str, ValueInfoProto],
    bindings: Mapping[str, str],
) -> None:
    """Bring the outputs of one task from the input's pixels to the image's, under the names they had."""
    if spec.annotation_type == "label":
        builder.outputs += [output_infos.pop(f"{name}.{output}") for output in spec.outputs]
        return
    if spec.annotation_type == "instances" and len(spec.outputs) != 3:
        raise PerceptionError(f"{name}: outputs {', '.join(spec.outputs)} cannot be brought back to image pixels.")
    entries = [output_infos.pop(f"{name}.{output}") for output in spec.outputs]
    for entry in entries:
        builder.rename_value(entry.name, f"{entry.name}/in")
    if spec.annotation_type == "instances":
        kinds = ("boxes", "scores", "labels")
        given = {**bindings, "scale": "restore/scale", "border": "restore/border"}
        given |= {kind: f"{entry.name}/in" for kind, entry in zip(kinds, entries, strict=True)}
        given |= {f"found_{kind}": entry.name for kind, entry in zip(kinds, entries, strict=True)}
        builder.append(text.RESTORE_BOXES, given, f"restore/{name}/")
    else:
        for i, entry in enumerate(entries):
            _append_map_restoring(builder, spec, entry, i, bindings)
    builder.outputs += entries


def _append_map_restoring(
    builder: _GraphBuilder, spec: TaskSpec, entry: ValueInfoProto, index: int, bindings: Mapping[str, str]
) -> None:
    """One map of a dense task: its first is classes or the quantity, the others are shares that no lens changes."""
    given, prefix = {**bindings, "values": f"{entry.name}/in", "found": entry.name}, f"restore/{entry.name}/"
    passes.set_shape(entry, ("batch", "height", "width"))
    if spec.classes and index == 0:
        axes = {name: text.NEAREST_INDICES.format(name=name, at=at) for at, name in enumerate(("rows", "columns"))}
        given["values"] = builder.remove_cast(given["values"])  # narrow types come last: TensorRT computes in none
        number = entry.type.tensor_type.elem_type
        builder.append(text.RESTORE_CLASS_IDS, given, prefix, dtype=passes.dtype_of(entry), number=number, **axes)
    else:
        scaled = spec.canonical_focal and index == 0
        scaling = "Mul (flat, mean_scale)" if scaled else "Identity (flat)"
        builder.append(text.RESTORE_VALUES, given, prefix, scaling=scaling, sizes=text.FIXED_RANK_SIZES)


def verify_embedding(
    full_graph: ModelProto,
    core: ModelProto,
    specs: Mapping[str, TaskSpec],
    iou_thresholds: Mapping[str, float],
    images: Sequence[NDArray[np.uint8]] = (),
) -> dict[str, float]:
    """Compare a wrapped graph with its core between the package's own letterbox and restoring: largest differences.

    Images of odd and extreme sizes stand in beside ``images``. Raises `parity.Disagreement`.
    """
    plain = ModelProto()
    plain.CopyFrom(core)
    plain.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    wrapped, bare = make_runner(full_graph.SerializeToString()), make_runner(plain.SerializeToString())
    generator, comparison, worst = np.random.default_rng(0), parity.ParityCheck(specs, iou_thresholds), 0.0
    for picture in [*images[:4], *(parity.draw_rectangles(generator, *shape) for shape in TEST_IMAGE_SIZES)]:
        where = f"an image of {picture.shape[0]}x{picture.shape[1]}"
        found = wrapped(np.ascontiguousarray(picture[None]))
        placed = found[LETTERBOXED]
        frame = geometry.compute_letterbox((picture.shape[0], picture.shape[1]), (placed.shape[2], placed.shape[3]))
        if min(frame.scale) > 1 / 2.8:
            wanted = geometry.warp_image(picture, frame).transpose(2, 0, 1)
            worst = max(worst, float(np.max(np.abs(wanted - placed[0]))))
        if not worst <= LETTERBOX_TOLERANCE:
            raise parity.ParityError(f"{where} is placed {worst:.2f} levels away from what the network is trained on.")
        outputs = {key: value for key, value in bare(placed).items() if ".raw." not in key}
        comparison.update(where, restore_outputs(outputs, specs, frame), found)
    return {"letterbox": worst, **{f"{name} (embedded)": value for name, value in comparison.compute().items()}}


def restore_outputs(
    outputs: Mapping[str, NDArray], specs: Mapping[str, TaskSpec], transform: ImageTransform
) -> dict[str, NDArray]:
    """The outputs of a network, with their batch dimension, in the pixels of the image that ``transform`` placed."""
    found = dict(outputs)
    for name, spec in specs.items():
        keys = [f"{name}.{output}" for output in spec.outputs]
        first = outputs[keys[0]]
        if spec.annotation_type == "instances":
            boxes = np.stack([geometry.unwarp_boxes(one, transform) for one in first])
            solid = np.all(boxes[..., 2:] > boxes[..., :2], axis=-1)
            found |= {keys[0]: boxes * solid[..., None], keys[1]: outputs[keys[1]] * solid}
            found[keys[2]] = outputs[keys[2]] * solid
        elif spec.annotation_type == "dense" and spec.classes:
            rows, columns = (
                (2 * np.arange(whole) + 1) * placed // (2 * whole)
                for whole, placed in zip(transform.source_size, transform.placement[:1:-1], strict=True)
            )
            found[keys[0]] = first[:, rows[:, None], columns]
        for i, key in enumerate(keys):
            if spec.annotation_type == "dense" and not (spec.classes and i == 0):
                factor = np.float32(np.mean(transform.scale) if spec.canonical_focal and i == 0 else 1)
                maps = [geometry.unwarp_map(one, transform, smooth=True) for one in outputs[key]]
                found[key] = np.stack(maps) * factor
    return found


class _GraphBuilder:
    """A graph that is put together from pieces of text and from another graph."""

    def __init__(self, core: ModelProto, opset: int) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(core)
        self.graph, self.opset = self.model.graph, opset
        for field in (self.graph.node, self.graph.initializer, self.graph.output):
            del field[:]
        self.graph.input[0].CopyFrom(core.graph.input[0])
        self.outputs: list[ValueInfoProto] = []
        self.letterboxed = ValueInfoProto()

    def append(self, template: str, bindings: Mapping[str, str], prefix: str, **values: object) -> None:
        """Append a piece. bindings: its names that are values of the whole graph; its others get the prefix."""
        piece = parser.parse_model(text.MODEL_HEADER.format(opset=self.opset) + template.format(**values))
        passes.lift_constants(piece)
        ready = passes.add_prefix(piece, prefix, bindings)
        self.graph.node.extend(ready.graph.node)
        self.graph.initializer.extend(ready.graph.initializer)
        if LETTERBOXED in bindings:
            self.letterboxed.CopyFrom(ready.graph.output[0])

    def remove_cast(self, name: str) -> str:
        """What the value ``name`` is cast from, where its maker is nothing but a cast, which then goes."""
        maker = next(node for node in self.graph.node if name in node.output)
        if maker.op_type != "Cast":
            return name
        self.graph.node.remove(maker)
        return maker.input[0]

    def rename_value(self, old: str, new: str) -> None:
        """Call a value of the graph by another name, wherever it is made or read."""
        for node in self.graph.node:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
