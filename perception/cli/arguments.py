"""Arguments and output helpers that the commands share."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from perception.files.safe_names import escape_unprintable
from perception.video.progress import Progress

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The set of commands that a parser offers, as returned by ``add_subparsers``."""


def add_command(commands: Commands, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    """Add a subcommand; ``text`` is its help and its description."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(action=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add the key=value overrides of a recipe."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe")


def add_tasks(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --tasks."""
    parser.add_argument("--tasks", type=parse_names, metavar="A,B", help="run only these tasks and what they need")


def parse_names(text: str) -> list[str]:
    """Parse "a,b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, got '{text}'")
    return int(text)


def parse_shard(text: str) -> tuple[int, int]:
    """Parse "I/N" with 1 <= I <= N."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 1 to N, for example 2/4, got '{text}'")
    return int(number), int(of)


def parse_positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got '{text}'")
    return value


def parse_size(text: str) -> tuple[int, int]:
    """Parse "HxW" to (height, width)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"expected HxW, for example 256x512, got '{text}'")
    return int(height), int(width)


def parse_size_or_dynamic(text: str):
    """Parse "HxW", or "dynamic"."""
    return "dynamic" if text.lower() == "dynamic" else parse_size(text)


def check_argument_order(parsed: argparse.Namespace) -> None:
    """Raise ConfigError if the model and the images were given in the wrong order."""
    from perception.types import ConfigError

    model, source = parsed.model, getattr(parsed, "source", None) or getattr(parsed, "images", None)
    if source is not None and _is_network(Path(source)) and not _is_network(model):
        command = " ".join(filter(None, (parsed.command, getattr(parsed, "kind", ""))))
        network, pictures = escape_unprintable(str(source)), escape_unprintable(str(model))
        raise ConfigError(
            f"{pictures} is not a network, but {network} is. The network comes first. "
            f"Run: perception {command} {network} {pictures}"
        )


def _is_network(path: Path) -> bool:
    return path.suffix in (".onnx", ".safetensors") or (path / "checkpoints").is_dir()


def parse_intrinsics(text: str | None):
    """Parse "fx,fy,cx,cy" in pixels to a Camera; None stays None. Raises ConfigError for other text."""
    from perception.types import Camera, ConfigError

    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--intrinsics {text}: expected four numbers fx,fy,cx,cy in pixels of the source.") from error
    return Camera(fx, fy, cx, cy)


def printable_lines(text: str) -> str:
    """Escape unprintable characters in each line of a text."""
    return "\n".join(map(escape_unprintable, text.split("\n")))


def install_plain_warnings() -> None:
    """Print warnings and log records as plain text on stderr, with unprintable characters of file names escaped."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {printable_lines(str(message))}\n"
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_PlainFormatter())


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stdout; works with any encoding and tolerates a closed pipe."""
    if sys.stdout is None:  # closed by the parent process
        return
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for line in lines:
            print(printable_lines(line))  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr without torch and rich; yields a function that takes the number of finished items."""
    line = Progress(sys.stderr, "", total, unit=text)
    try:
        yield line.set_count
    finally:
        line.finish()
