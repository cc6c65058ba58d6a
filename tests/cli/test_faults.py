"""Every fault of docs/faults.md has a test, and every mark names a fault of it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def marked_faults() -> set[str]:
    """The ids in `pytest.mark.fault(id)` of all test files."""
    found = set()
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


def test_every_fault_of_the_matrix_has_a_test():
    listed = re.findall(r"^\| ([A-Z]\d+) \|", (ROOT / "docs/faults.md").read_text("utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed)) >= 45
    assert marked_faults() == set(listed)
