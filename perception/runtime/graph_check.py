"""Does a graph take and give what its manifest says? Asked when a file is opened, and of every answer. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from perception.runtime.manifest import InputRules, OutputRules, fits
from perception.types import PerceptionError

TYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(uint8)": "uint8"}


def check_ends(session: Any, rules: InputRules, outputs: Mapping[str, OutputRules], where: str) -> None:
    """Raise PerceptionError unless the inputs and outputs of a session are as the manifest says, as far as is known."""
    free = ("height", "width")
    given = ("batch", *free, 3) if rules.inside else ("batch", 3, *(free if rules.dynamic else rules.size))
    inputs = session.get_inputs()
    entry = inputs[0] if len(inputs) == 1 else None
    if (
        entry is None
        or (entry.name, entry.type) != (rules.name, "tensor(uint8)")
        or not fits(_known(entry.shape), given)
        or (rules.dynamic and any(isinstance(size, int) for size in entry.shape[2:4]))
    ):
        found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
        raise PerceptionError(f"{where}: expected one input {rules.name} uint8 {list(given)}, found {found}.")
    known = {entry.name: entry for entry in session.get_outputs()}
    for name, rule in outputs.items():
        entry = known[name]
        if TYPES.get(entry.type) != rule.dtype or not fits(_known(entry.shape), rule.shape):
            raise _unlike(where, name, f"{entry.type} {entry.shape}", rule)


def _known(shape: Sequence[Any]) -> list[int | str]:
    return [size if isinstance(size, int) else "" for size in shape]


def check_answer(
    images: NDArray, answer: Sequence[NDArray], outputs: Mapping[str, OutputRules], inside: bool, where: str
) -> None:
    """Raise PerceptionError unless what a graph answered to ``images`` has the types and sizes of the manifest."""
    height, width = images.shape[1:3] if inside else images.shape[2:4]
    real = {"batch": len(images), "height": height, "width": width}
    for values, (name, rule) in zip(answer, outputs.items()):  # noqa: B905 - one each
        shape = [real.get(size, size) if isinstance(size, str) else size for size in rule.shape]
        if values.dtype != rule.dtype or not fits(values.shape, shape):
            raise _unlike(where, name, f"{values.dtype} {list(values.shape)}", rule)


def _unlike(where: str, name: str, found: str, rule: OutputRules) -> PerceptionError:
    expected = f"{rule.dtype} {list(rule.shape)}"
    return PerceptionError(f"{where}: {name} is {found}, and its manifest says {expected}. Export it again.")
