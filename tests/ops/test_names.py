"""Names from files: what may become a path, and what reaches a terminal."""

import pytest

from perception.files.safe_names import TASK_NAME, check_file_name, escape_unprintable, is_file_name
from perception.types import PerceptionError


@pytest.mark.parametrize("name", ["run", "street-2", "Nacht_3.5", "straße", "a" * 120])
def test_plain_names_may_be_files(name):
    assert check_file_name(name, "name") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/abs", "a/b", "a\\b", "C:x", "a\0b", "a\x1b[31m", "\u202egnp", "-rf", "~", ".hidden",
     "con", "COM1.txt", "a.", "a ", "a" * 121, "\udcff", 3, None, ["x"]],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name):
    assert not is_file_name(name)
    with pytest.raises(PerceptionError, match=r"^name: .*cannot be the name of a file") as caught:
        check_file_name(name, "name")
    assert str(caught.value).isprintable()


def test_task_names_are_file_names():
    for name in ("detection", "lane_2"):
        assert TASK_NAME.fullmatch(name)
        assert is_file_name(name)
    assert not TASK_NAME.fullmatch("../../x")


def test_terminal_escapes_are_shown_not_sent():
    assert escape_unprintable("a\x1b[31mb\nc\u202ed\udcffe") == "a\\x1b[31mb\\nc\\u202ed\\udcffe"
    assert escape_unprintable("Größe 3 px") == "Größe 3 px"
