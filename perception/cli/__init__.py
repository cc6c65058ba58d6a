"""All commands. Each command imports its heavy dependencies itself, so `perception --help` is fast."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from perception import __version__
from perception.cli import bench, data, export, inference, studies, train
from perception.cli.arguments import install_plain_warnings, printable_lines
from perception.files.safe_write import DISK_FULL_ERRNOS, REFUSED_ERRNOS, is_disk_full
from perception.types import PerceptionError
from perception.video.progress import write_now
from perception.video.threads import exit_despite_hung_threads

BROKEN_PIPE_EXIT_CODE = 141
"""Exit code when the reader of standard output has gone, as for a program ended by SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: None means the arguments of this process, which may then exit inside this call.

    Returns:
        The exit code: 0; 1 if part of the work failed or a disk is full; 2 if the user must fix something; 130, 143,
        ... after a signal.
    """
    parsed = _parse(arguments)
    install_plain_warnings()
    code = _run(parsed)
    if arguments is None:
        exit_despite_hung_threads(code)
    return code


def _run(parsed: argparse.Namespace) -> int:
    try:
        return parsed.action(parsed) or 0
    except PerceptionError as error:
        _print_error(parsed, str(error))
        return 1 if is_disk_full(error) else 2
    except BrokenPipeError:  # the reader of standard output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT_CODE
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS | REFUSED_ERRNOS:
            raise
        _print_error(parsed, f"{error.filename or 'a file'}: {error.strerror}. Check its name, permissions and disk.")
        return 1 if error.errno in DISK_FULL_ERRNOS else 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "perception":
            raise
        _print_error(parsed, describe_missing(error.name or ""))
        return 2
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signal", signal.SIGINT)


def _print_error(parsed: argparse.Namespace, text: str) -> None:
    write_now(sys.stderr, f"perception {parsed.command}: {printable_lines(text)}\n")


INSTALL_HINTS = {
    "onnxruntime": "Install one engine: pip install onnxruntime, or for CUDA and TensorRT: pip install onnxruntime-gpu",
    "cv2": "Install OpenCV: pip install opencv-python-headless; for ROS's Python: apt install python3-opencv.",
    "rosbags": "Install the bag readers: pip install 'dense-perception[robots]'",
    "mcap": "Install the bag readers: pip install 'dense-perception[robots]'",
    "optuna": "Install Optuna: pip install 'dense-perception[tune]'",
    "rerun": "Install the Rerun SDK: pip install 'dense-perception[rerun]'",
    **dict.fromkeys(("numpy", "yaml"), "Install it: pip install dense-perception"),
}
"""Module -> install hint. All other modules come with the `train` extra."""


def describe_missing(module: str) -> str:
    """Error text for a module that is not installed, with an install hint."""
    name = module.partition(".")[0]
    default = "Install the training dependencies: pip install 'dense-perception[train]'"
    return f"the package {name} is not installed. {INSTALL_HINTS.get(name, default)}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments. key=value overrides may appear anywhere, which argparse alone does not support."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    strays = [text for text in rest if text.startswith("-") or "=" not in text or not hasattr(parsed, "overrides")]
    if strays:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the `perception` command with all its subcommands."""
    parser = argparse.ArgumentParser(
        prog="perception", description="One network, one pass: detection, segmentation, depth and classification."
    )
    parser.add_argument("--version", action="version", version=f"perception {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (train, studies, inference, export, bench, data):
        group.add_commands(commands)
    return parser
