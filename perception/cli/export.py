"""The command `export`: writes the ONNX file for deployment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from perception.cli.arguments import Commands, add_command, add_overrides, add_tasks, parse_count, parse_size_or_dynamic


def add_commands(commands: Commands) -> None:
    """Add the command `export`."""
    export = add_command(commands, "export", _export, "write one verified ONNX file")
    export.add_argument("model", type=Path, metavar="RUN", help="run folder or checkpoint")
    add_overrides(export)
    add_tasks(export)
    export.add_argument(
        "--out", type=Path, help="output file (default: RUN/model.onnx); its manifest is written beside it as .json"
    )
    export.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="arithmetic; fp16 and int8 are evaluated on the recipe's validation images and rejected if a task loses "
        "more than the budget, int8 also if it is not faster",
    )
    export.add_argument(
        "--size",
        type=parse_size_or_dynamic,
        metavar="HxW|dynamic",
        help="a fixed input size, or dynamic: any multiples of 32 (default)",
    )
    export.add_argument(
        "--target",
        choices=("onnxruntime", "tensorrt"),
        default="onnxruntime",
        help="tensorrt: reject operators that its parser does not support; int8 is then symmetric, and its speed is "
        "not checked on this machine",
    )
    export.add_argument(
        "--preprocess",
        choices=("external", "embedded"),
        default="external",
        help="embedded: the graph takes raw images of any size, uint8 [batch, height, width, 3], and outputs results in"
        " their pixel coordinates",
    )
    export.add_argument(
        "--budget", type=float, default=0.01, help="largest absolute loss of a task's metric (default: 0.01, one point)"
    )
    export.add_argument(
        "--calibration-images",
        type=parse_count,
        default=64,
        metavar="N",
        help="training images for int8 calibration (default: 64)",
    )
    export.add_argument(
        "--validation-images",
        type=parse_count,
        default=500,
        metavar="N",
        help="largest number of validation images used (default: 500)",
    )


def _export(parsed: argparse.Namespace) -> int:
    from perception.export.from_run import export

    print("Exporting and comparing with PyTorch takes about a minute.", file=sys.stderr)  # noqa: T201
    report = export(
        parsed.model,
        parsed.out,
        tasks=parsed.tasks,
        precision=parsed.precision,
        size=parsed.size,
        preprocess=parsed.preprocess,
        budget=parsed.budget,
        calibration_images=parsed.calibration_images,
        validation_images=parsed.validation_images,
        target=parsed.target,
        overrides=parsed.overrides,
    )
    print(report)  # noqa: T201
    return 0
