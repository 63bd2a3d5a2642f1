"""The package's face: light to import, typed, and a wing that can be called."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import myllm


def printed(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_loads_nothing_heavy():
    heavy = "{'torch', 'numpy', 'rich', 'tokenizers'}"
    assert printed(f"import myllm, sys; print(len({heavy} & set(sys.modules)))") == "0"


@pytest.mark.parametrize("name", myllm.__all__)
def test_every_public_name_is_there_and_explained(name):
    found = getattr(myllm, name)
    assert found.__doc__ and name in dir(myllm)


def test_a_wing_that_is_a_verb_shows_the_help_of_the_verb():
    """In a notebook and in `help`: not that of the package."""
    assert "max_steps" in (myllm.train.__doc__ or "")
    assert "resume" in inspect.signature(myllm.train).parameters


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        getattr(myllm, "trian")  # noqa: B009


@pytest.mark.parametrize(
    "before", ["", "from myllm.train import Trainer; ", "import myllm.runs; "]
)
def test_wings_can_be_called_whatever_was_imported_before(before):
    code = before + "import myllm; print(myllm.runs('nowhere'), callable(myllm.train))"
    assert printed(code) == "[] True"
