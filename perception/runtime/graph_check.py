"""Does a graph take and give what its manifest says? Asked when a file is opened, and of every answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from perception.runtime.manifest import InputSpec, OutputSpec, is_compatible_shape
from perception.types import PerceptionError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

NUMPY_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def check_signature(
    session: InferenceSession, input_spec: InputSpec, output_specs: Mapping[str, OutputSpec], where: str
) -> None:
    """Raise PerceptionError unless the inputs and outputs of a session are as the manifest says, as far as is known."""
    free = ("height", "width")
    given = (
        ("batch", *free, 3)
        if input_spec.embeds_preprocessing
        else ("batch", 3, *(free if input_spec.dynamic else input_spec.size))
    )
    inputs = session.get_inputs()
    entry = inputs[0] if len(inputs) == 1 else None
    if (
        entry is None
        or (entry.name, entry.type) != (input_spec.name, "tensor(uint8)")
        or not is_compatible_shape(_static_shape(entry.shape), given)
        or (input_spec.dynamic and any(isinstance(size, int) for size in entry.shape[2:4]))
    ):
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise PerceptionError(f"{where}: expected one input {input_spec.name} uint8 {list(given)}, found {found}.")
    known = {entry.name: entry for entry in session.get_outputs()}
    for name, rule in output_specs.items():
        entry = known[name]
        if NUMPY_DTYPES.get(entry.type) != rule.dtype or not is_compatible_shape(
            _static_shape(entry.shape), rule.shape
        ):
            raise _mismatch_error(where, name, f"{entry.type} {entry.shape}", rule)


def _static_shape(shape: Sequence[Any]) -> list[int | str]:
    return [size if isinstance(size, int) else "" for size in shape]


def check_outputs(
    images: NDArray, outputs: Sequence[NDArray], output_specs: Mapping[str, OutputSpec], embedded: bool, where: str
) -> None:
    """Raise PerceptionError unless what a graph answered to ``images`` has the types and sizes of the manifest."""
    height, width = images.shape[1:3] if embedded else images.shape[2:4]
    real = {"batch": len(images), "height": height, "width": width}
    for values, (name, rule) in zip(outputs, output_specs.items()):  # noqa: B905 - one each
        shape = [real.get(size, size) if isinstance(size, str) else size for size in rule.shape]
        if values.dtype != rule.dtype or not is_compatible_shape(values.shape, shape):
            raise _mismatch_error(where, name, f"{values.dtype} {list(values.shape)}", rule)


def _mismatch_error(where: str, name: str, found: str, output_spec: OutputSpec) -> PerceptionError:
    expected = f"{output_spec.dtype} {list(output_spec.shape)}"
    return PerceptionError(f"{where}: {name} is {found}, and its manifest says {expected}. Export it again.")
