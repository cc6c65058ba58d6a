"""What commands share: their arguments, and how they talk."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from perception.ops.names import printable


def add_command(commands: Any, name: str, run: Callable, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(action=run)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides of the recipe")


def add_tasks(parser: Any) -> None:
    parser.add_argument("--tasks", type=names, metavar="A,B", help="only these tasks; only what they need is run")


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number over 0")
    return value


def size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form HxW, for example 256x512")
    return int(height), int(width)


def size_or_dynamic(text: str):
    return "dynamic" if text.lower() == "dynamic" else size(text)


def camera(text: str | None):
    from perception.types import Camera, ConfigError

    if text is None:
        return None
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--camera {text}: expected four numbers fx,fy,cx,cy in pixels of the source.") from error
    return Camera(fx, fy, cx, cy)


def printable_lines(text: str) -> str:
    """Text of several lines as it may reach a terminal, whatever the names in it hold."""
    return "\n".join(map(printable, text.split("\n")))


def show_plainly() -> None:
    """Warnings and what is logged name files, too: one sentence each on stderr, without what a name could do there."""
    warnings.formatwarning = lambda message, *_, **__: f"Warning: {printable_lines(str(message))}\n"
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Plain())


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def say(lines: Iterable[str]) -> None:
    """Lines on stdout, whatever its encoding, and though nobody may read them to the end."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        for line in lines:
            print(printable_lines(line))  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Like `perception.engine.log.progress_bar`, without torch."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"{text:8}"), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)
