"""What the README says is true of the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_promise_of_the_readme_names_tests_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    promises = text.partition("## What it promises")[2].partition("\n## ")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ") and "held by" not in line]
    defined = set(re.findall(r"def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py"))))
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named and not set(named) - defined, row
