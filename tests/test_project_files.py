"""The files around the code: workflows, forms, versions, the Dockerfile, notebooks."""

from __future__ import annotations

import datetime
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_dockerfile import problems

import myllm

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
FORMS = sorted(path for path in GITHUB.glob("ISSUE_TEMPLATE/*.yml") if path.stem != "config")
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def steps(path: Path) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


class TestVersion:
    def test_changelog_and_citation_have_the_version_and_its_date(self) -> None:
        citation = load(ROOT / "CITATION.cff")
        assert str(citation["version"]) == myllm.__version__
        date = datetime.date.fromisoformat(str(citation["date-released"]))
        assert f"\n## [{myllm.__version__}] - {date}\n" in text_of("CHANGELOG.md")

    def test_changelog_goes_from_unreleased_to_the_oldest(self) -> None:
        names = re.findall(r"^## \[(.+?)\]", text_of("CHANGELOG.md"), re.MULTILINE)
        assert names[0] == "Unreleased"
        numbers = [tuple(map(int, name.split("."))) for name in names[1:]]
        assert numbers == sorted(numbers, reverse=True) and numbers

    def test_is_written_in_one_place_of_the_code(self) -> None:
        project = tomllib.loads(text_of("pyproject.toml"))
        assert project["project"]["dynamic"] == ["version"]
        assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "myllm.__version__"}


class TestWorkflows:
    def test_there_are_two(self) -> None:
        assert [path.stem for path in WORKFLOWS] == ["release", "test"]

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_jobs_have_limits_and_steps_do_something(self, path: Path) -> None:
        for job in load(path)["jobs"].values():
            assert job["timeout-minutes"] <= 90 and job["runs-on"]
        for step in steps(path):
            assert ("run" in step) != ("uses" in step), step

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_actions_are_pinned_and_nothing_is_secret(self, path: Path) -> None:
        for step in steps(path):
            assert re.search(r"@(v\d|release/v\d)", step.get("uses", "@v1")), step
        assert "secrets." not in path.read_text(encoding="utf-8")

    @pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
    def test_scripts_parse(self, path: Path) -> None:
        for step in steps(path):
            done = subprocess.run(["bash", "-n", "-c", step.get("run", "")], capture_output=True)
            assert done.returncode == 0, done.stderr

    def test_the_checks_are_those_of_ci_run(self) -> None:
        assert "bash .ci/run" in [step.get("run") for step in steps(GITHUB / "workflows/test.yml")]
        assert subprocess.run(["bash", "-n", str(ROOT / ".ci/run")]).returncode == 0

    def test_only_what_was_tested_is_published(self) -> None:
        jobs = load(GITHUB / "workflows/release.yml")["jobs"]
        assert jobs["publish"]["needs"] == "test" and jobs["test"]["needs"] == "build"
        assert jobs["publish"]["permissions"] == {"id-token": "write"}
        assert jobs["publish"]["environment"]["name"] == "pypi"


class TestForms:
    @pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
    def test_asks_for_something(self, path: Path) -> None:
        form = load(path)
        assert form["name"] and form["description"]
        ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
        assert ids and len(ids) == len(set(ids))
        assert all(part["attributes"]["label"] for part in form["body"])

    def test_there_are_two_and_a_door_for_vulnerabilities(self) -> None:
        assert [path.stem for path in FORMS] == ["bug", "feature"]
        assert load(GITHUB / "ISSUE_TEMPLATE/config.yml")["contact_links"][0]["url"]


class TestDockerfile:
    def test_nothing_is_wrong(self) -> None:
        assert problems(ROOT) == []

    @pytest.mark.parametrize(
        "old, new, told",
        [
            ("python:3.12-slim", "python", "no fixed tag"),
            ("python:3.12-slim", "python:latest", "no fixed tag"),
            ("USER myllm", "USER root", "runs as root"),
            ("USER myllm\n", "", "runs as root"),
            ("COPY myllm ", "COPY mylm ", "COPY mylm: no such file"),
            ("COPY myllm ", "COPY tests ", "COPY tests: .dockerignore leaves it out"),
            ('["myllm"]', "myllm", "is not in the form"),
            ('["myllm"]', '["python"]', "not among the scripts"),
            ("RUN useradd", "RUN if useradd", "syntax error"),
            ("WORKDIR /src", "WORKDIRS /src", "line 7: not an instruction"),
        ],
    )
    def test_what_is_wrong_is_told(self, old: str, new: str, told: str) -> None:
        text = text_of("Dockerfile")
        assert old in text
        found = problems(ROOT, text.replace(old, new))
        assert len(found) == 1 and told in found[0]


class TestNotebooks:
    def test_there_is_one(self) -> None:
        assert NOTEBOOKS

    @pytest.mark.slow
    @pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
    def test_runs_from_above_to_below(self, path: Path, tmp_path: Path) -> None:
        import nbformat
        from nbclient import NotebookClient

        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
        folder = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(
            notebook, timeout=600, resources=folder
        ).execute()  # raises what a cell does
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert any(cell.outputs for cell in cells)
