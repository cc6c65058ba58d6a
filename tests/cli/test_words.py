"""Plain English: the words of an earlier private vocabulary stay out of the code, the documents and the help texts."""

from __future__ import annotations

import argparse
import io
import re
import tokenize
from pathlib import Path

import pytest

from perception import cli

ROOT = Path(__file__).parents[2]
WORDS = {
    r"\bpictures?\b": "image",
    r"\bfilms?\b": "video",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bmade (streets?|street scenes?|data)\b": "synthetic",
    r"\blabel maps?\b": "segmentation mask",
    r"\bsee-saws?\b": "negative transfer",
    r"\bdoubts?\b": "out-of-distribution score",
    r"\bcolour|\bgrey\b|labelled\b|\bnormalis|\boptimis|\bquantis": "American spelling",
    r"(?<!there )\bis no (?!longer|more|less|other|such|guarantee)": "is not a",
    r"\b(network|model|program|layer|manifest|report|reader|recipe) (says|tells|knows|asks)\b": "a program's verb",
    r"\b(unheard|whoever|as may be|for want of|but for)\b": "plain words",
}
"""Pattern -> what to write instead."""
ALLOWED = re.compile(r'"colour"|"picture"|bookshelf, picture|pictures?[/"\'.]|made street data')
"""Class names of data sets, names of files, and the description inside of a file format."""

NOT_YET = ("perception/export/", "perception/runtime/")
"""Beginnings of the files whose texts are not rewritten yet."""


def texts_of_code(path: Path) -> list[tuple[int, str]]:
    """(line, text) of the comments and strings of a Python file, without the expressions in f-strings."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            found.append((token.start[0], re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "{}", token.string)))
    return found


def find_words(texts: list[tuple[int, str]], where: str) -> list[str]:
    return [
        f"{where}:{line}: '{match[0]}' in {text[max(0, match.start() - 30) : match.end() + 30]!r}; write: {better}"
        for line, text in texts
        for pattern, better in WORDS.items()
        for match in re.finditer(pattern, ALLOWED.sub("", text), re.IGNORECASE)
    ]


@pytest.mark.parametrize("room", sorted(path.name for path in (ROOT / "perception").iterdir() if path.is_dir()))
def test_code_is_in_plain_english(room):
    files = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "perception" / room).rglob("*.py"))}
    finished = {name: path for name, path in files.items() if not name.startswith(NOT_YET)}
    assert not [hit for name, path in finished.items() for hit in find_words(texts_of_code(path), name)]


def test_documents_are_in_plain_english():
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
    files += [
        ROOT / "datasets/README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "configs").glob("*.yaml")),
    ]
    texts = {path: list(enumerate(path.read_text("utf-8").splitlines(), 1)) for path in files}
    assert not [hit for path, lines in texts.items() for hit in find_words(lines, str(path.relative_to(ROOT)))]


def test_help_is_in_plain_english():
    def walk(parser: argparse.ArgumentParser) -> list[tuple[int, str]]:
        found = [(0, parser.format_help())]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name in action.choices:
                    found += walk(action.choices[name])
        return found

    parser = cli.build_parser()
    assert len(walk(parser)) >= 18
    assert not find_words(walk(parser), "perception --help")
