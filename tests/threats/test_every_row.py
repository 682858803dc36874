"""Each known threat has its test, or a line in docs/security.md that says why it has none.

S: addresses and URLs that reach inside. R: what receivers answer.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECURITY = (HERE.parent.parent / "docs/security.md").read_text()

# How many there are of each kind.
ROWS = {"S": 20, "R": 11, "H": 7, "J": 17}
IDS = [f"{kind}{number}" for kind, most in ROWS.items() for number in range(1, most + 1)]


def rows_of_tests() -> set[str]:
    """The ids in the names of the tests."""
    names = [
        name
        for path in HERE.glob("test_*.py")
        for name in re.findall(r"(?m)^ *def (test_\w+)\(", path.read_text())
    ]
    return {found[1].upper() for name in names if (found := re.match(r"test_([a-z]\d+)_", name))}


@pytest.mark.parametrize("row", IDS)
def test_each_threat_has_a_test_or_a_reason(row):
    assert row in rows_of_tests() or re.search(rf"(?m)^\W*{row}\b", SECURITY)


def test_no_test_or_reason_is_named_after_a_threat_that_there_is_none_of():
    reasons = re.findall(r"(?m)^\W*([A-Z]\d+)\b", SECURITY)
    named = {each for each in (*rows_of_tests(), *reasons) if each[0] in ROWS}
    assert named <= set(IDS)
