"""Fixtures that the tests of faults share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def here(folder, longer_text) -> Path:
    """A working directory with a text to train on, `text.txt`."""
    Path("text.txt").write_text(longer_text, encoding="utf-8")
    return folder
