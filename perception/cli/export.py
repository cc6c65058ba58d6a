"""The command that makes a file for the vehicle: export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from perception.cli.arguments import add_command, add_overrides, add_tasks, parse_count, parse_size_or_dynamic


def add_commands(commands: Any) -> None:
    export = add_command(commands, "export", _export, "write one verified ONNX file")
    export.add_argument("model", type=Path, metavar="RUN", help="run folder or checkpoint")
    add_overrides(export)
    add_tasks(export)
    export.add_argument(
        "--out", type=Path, help="the file (default: RUN/model.onnx); its manifest lies beside it as .json"
    )
    export.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the arithmetic; fp16 and int8 are measured on the recipe's validation images, and refused where a "
        "task loses more than the budget, int8 also where it is not faster",
    )
    export.add_argument(
        "--size",
        type=parse_size_or_dynamic,
        metavar="HxW|dynamic",
        help="the only input size, or any multiples of 32 (default)",
    )
    export.add_argument(
        "--target",
        choices=("onnxruntime", "tensorrt"),
        default="onnxruntime",
        help="tensorrt: refuse what its parser would refuse; int8 is then symmetric, and not judged by its speed here",
    )
    export.add_argument(
        "--preprocess",
        choices=("external", "embedded"),
        default="external",
        help="embedded: the graph takes images of any size as they are, uint8 [batch, height, width, 3], and answers "
        "in their pixels",
    )
    export.add_argument(
        "--budget", type=float, default=0.01, help="what a task's metric may lose, absolutely (default: 0.01, a point)"
    )
    export.add_argument(
        "--calibration-images",
        type=parse_count,
        default=64,
        metavar="N",
        help="training images for int8's ranges (default: 64)",
    )
    export.add_argument(
        "--validation-images",
        type=parse_count,
        default=500,
        metavar="N",
        help="validation images that judge (default: 500 at most)",
    )


def _export(parsed: argparse.Namespace) -> int:
    from perception.export.from_run import export

    print("Exporting and comparing with torch takes about a minute.", file=sys.stderr)  # noqa: T201
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
