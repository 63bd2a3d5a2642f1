"""What the repository says about itself: versions, workflows, templates, the container."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml

import myllm

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.escape(myllm.__version__)


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "path", sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / ".github").rglob("*.yml"))
)
def test_github_files_parse(path):
    assert isinstance(yaml.safe_load(text_of(path)), dict)


def test_workflows_run_the_one_script():
    """What passes here passes there: the workflows have no list of checks of their own."""
    for name in ("test", "release"):
        jobs = yaml.safe_load(text_of(f".github/workflows/{name}.yml"))["jobs"]
        steps = [step for job in jobs.values() for step in job["steps"]]
        assert "bash .ci/run" in [step.get("run") for step in steps]


def test_publishing_needs_no_secret():
    workflow = text_of(".github/workflows/release.yml")
    assert "secrets." not in workflow and "id-token: write" in workflow


def test_one_version():
    """`myllm/__init__.py` says it; the package reads it there, and what cites it agrees."""
    assert re.search(rf"^version: {VERSION}$", text_of("CITATION.cff"), re.M)
    assert re.search(rf"^## {VERSION}$", text_of("CHANGELOG.md"), re.M)
    assert 'attr = "myllm.__version__"' in text_of("pyproject.toml")


class TestDockerfile:
    @pytest.fixture
    def check(self):
        spec = importlib.util.spec_from_file_location("check", ROOT / "tools/check_dockerfile.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_nothing_wrong(self, check):
        assert not list(check.faults(ROOT))

    @pytest.mark.parametrize(
        "old, new, words",
        [
            ("python:3.12-slim", "python:latest", "no fixed tag"),
            ("COPY myllm ", "COPY mylm ", "no such file"),
            ("COPY myllm ", "COPY docs ", "leaves it out"),
            ("USER writer", "USER root", "as root"),
            ('"myllm"', '"mylm"', "not a program"),
            ("&& rm -r /src", "&& (rm -r /src", "RUN"),
            ("VOLUME", "VOLUMES", "not an instruction"),
        ],
    )
    def test_faults_are_found(self, check, tmp_path, old, new, words):
        for name in ("pyproject.toml", "README.md", "LICENSE", ".dockerignore"):
            shutil.copy(ROOT / name, tmp_path)
        for name in ("myllm", "docs"):
            (tmp_path / name).mkdir()
        broken = text_of("Dockerfile").replace(old, new)
        (tmp_path / "Dockerfile").write_text(broken, encoding="utf-8")
        found = list(check.faults(tmp_path))
        assert len(found) == 1 and words in found[0]
