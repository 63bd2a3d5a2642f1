"""Who may read and write what: modes, other users, users without a home."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli_place import ENV, TINY, assert_refused

from myllm.cli import main
from myllm.system import places

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes and users"),
    pytest.mark.usefixtures("quiet_terminal"),
]
NOBODY = 65534
RUN = Path("checkpoints/story")


VERBS = [
    ["generate", "the", "--run", "story"],
    ["train", "--resume", "story", "--max-steps", "9"],
    ["verify", "story"],
    ["export", "story", "--no-verify"],
]


@pytest.fixture(scope="module")
def imported(trained, tmp_path_factory):
    """All that the verbs import late: another user may not read where Python is."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("imported") / "place"
        shutil.copytree(trained, folder)
        patch.chdir(folder)
        for verb in VERBS:
            main(verb)


@pytest.fixture
def user(imported, place):
    """In the trained place, a user whom modes bind: not root, and the owner of everything."""
    root = os.geteuid() == 0
    if root:
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    yield
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_modes_follow_the_umask(here, run, umask):
    before = os.umask(umask)
    try:
        assert run("train", "text.txt", "--run", "r", *TINY).code == 0
        assert run("export", "r", "--out", "hf", "--no-verify").code == 0
        assert run("export", "r", "--to", "gguf", "--out", "r.gguf", "--no-verify").code == 0
        assert run("import", "hf", "--run", "s").code == 0
    finally:
        os.umask(before)
    made = [path for path in Path(".").rglob("*") if path.name != "text.txt"]
    assert len(made) > 30
    for path in made:
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    "name",
    ["step-000006/model.safetensors", "step-000006/manifest.json", "step-000006", "config.toml"],
)
def test_what_may_not_be_read_is_not_damaged(user, run, verb, name):
    """Exit 2 and the remedy; nothing older is used, nothing is put aside."""
    if (name, verb[0]) == ("config.toml", "generate"):
        return  # the checkpoint's copy is all that it needs
    path, names = RUN / name, sorted(p.name for p in RUN.iterdir())
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        result = run(*verb)
    finally:
        path.chmod(mode)
    assert_refused(result, 2, name, "Permission denied", "chmod -R a+rX")
    assert "damaged" not in result.err
    assert set(names) >= {p.name for p in RUN.iterdir()} - {".lock"}


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/story"])
@pytest.mark.parametrize("verb", [["generate"], ["verify", "story"]], ids=["newest", "named"])
def test_folders_that_may_not_be_read(user, run, verb, name):
    if (name, verb) == ("checkpoints/story", ["generate"]):
        return  # the newest run that may be read
    Path(name).chmod(0)
    try:
        result = run(*verb)
    finally:
        Path(name).chmod(0o755)
    assert_refused(result, 2, name, "chmod")


@pytest.mark.parametrize("name", ["data", "checkpoints", "."])
def test_folders_that_may_not_be_written(user, run, name):
    """One line before training."""
    Path("new.txt").write_text(Path("story.txt").read_text()[5:])
    Path(name).chmod(0o555)
    try:
        where = ["--data-dir", "d", "--runs-dir", "r"] if name == "." else []
        result = run("train", "new.txt", *where, *TINY)
    finally:
        Path(name).chmod(0o755)
    assert_refused(result, 2, "Permission denied", "let this user write there")


class TestWithoutAHome:
    @pytest.fixture
    def nobody(self, monkeypatch):
        def unknown(uid):
            raise KeyError(uid)

        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(pwd, "getpwuid", unknown)

    def test_caches_are_temporary(self, nobody):
        assert places.home() is None
        folder = places.cache_folder("compiled")
        assert folder is not None and folder.is_dir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_a_cache_that_cannot_be_made(self, nobody, monkeypatch, tmp_path):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        folder = places.cache_folder("compiled")
        assert folder is not None and folder.is_dir()
        monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError()))
        assert places.cache_folder("compiled") is None

    @pytest.mark.parametrize("with_home", [False, True])
    def test_what_is_typed_is_kept_in_memory(
        self, place, run, nobody, monkeypatch, with_home, tmp_path
    ):
        """Where there is no home, or one that cannot be written."""
        import prompt_toolkit
        from prompt_toolkit.history import InMemoryHistory

        histories = []

        class Session:
            def __init__(self, history):
                histories.append(history)

            def prompt(self, text):
                raise EOFError

        if with_home:
            monkeypatch.setenv("HOME", str(tmp_path / "missing"))
        monkeypatch.setattr(prompt_toolkit, "PromptSession", Session)
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        result = run("write")
        assert result.code == 0 and result.err == ""
        assert isinstance(histories[0], InMemoryHistory)

    @pytest.mark.slow
    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
    def test_a_user_without_an_entry_trains_and_compiles(self, place):
        def become_another():
            os.setgid(54321)
            os.setuid(54321)

        python = Path(sys.executable).resolve()
        if not all(path.stat().st_mode & stat.S_IXOTH for path in (python, *python.parents)):
            pytest.skip("others may not run this Python")
        for path in (place, *place.rglob("*")):
            os.chown(path, 54321, 54321)
        env = {name: value for name, value in ENV.items() if name != "HOME"}
        command = [sys.executable, "-m", "myllm", "train", "story.txt", *TINY]
        command += ["--kernels", "compiled"]
        done = subprocess.run(
            command, env=env, preexec_fn=become_another, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "not computed" not in done.stderr
