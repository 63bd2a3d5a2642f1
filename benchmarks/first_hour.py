"""A newcomer's first hour with a text, as a transcript: every line printed, every command told.

python benchmarks/first_hour.py novel.txt --columns 80

In a folder of its own, on a terminal of so many columns: train on the text, stop with Ctrl-C,
resume, let it end, generate, write, evaluate, list, compare, delete. Each command that is printed
on the way is run as it stands. What is wrong with the lines is told at the end: wider than the
terminal, with a replacement character, or a command that does not work. Of `generate`, `write` and
`chat` a line may be wider if it is the model's own: then it is in what a pipe gets, too, for the
same seed.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.cells import cell_len

# a control sequence and what it is made of; another one; a character
PIECES = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[=>]|([^\x1b])", re.DOTALL)
SEED = " --sample-seed 1"
CURSOR_ASKED, CURSOR_TOLD = b"\x1b[6n", b"\x1b[1;1R"  # where it is, as terminals answer
TOLD = re.compile(r"(?:^\s*|with: |try: |: )(myllm (?:\S.*\S))$")  # a command to the line's end


@dataclass
class Hour:
    """The commands run so far and what was wrong."""

    folder: Path
    columns: int
    wrong: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def run(self, command: str, keys: str = "", stop_at: str = "", expect: int = 0) -> str:
        """Runs a command of a shell on the terminal; Ctrl-C as soon as `stop_at` is shown."""
        print(f"\n$ {command}", flush=True)
        began = time.monotonic()
        code, raw = self._on_terminal(command, keys, stop_at)
        lines = shown(raw)
        piped = self._piped(command, keys) if command.endswith(SEED) else None
        print("\n".join(lines))
        print(f"[exit code {code}, {time.monotonic() - began:.1f} s]", flush=True)
        if code != expect:
            self.wrong.append(f"exit code {code}, not {expect}: {command}")
        for line in lines:
            self._check(line, command, piped)
        return "\n".join(lines)

    def run_told(self) -> None:
        """Runs each command that was printed and has not been run."""
        while self.told:
            command = self.told.pop(0)
            if not command.startswith(("myllm train", "myllm runs delete")):
                self.run(
                    command, keys="/quit\n" if "write" in command or "chat" in command else ""
                )

    def _piped(self, command: str, keys: str) -> set[str]:
        """The lines that a writing command gives without a terminal, its own apart."""
        done = subprocess.run(
            command, shell=True, cwd=self.folder, input=keys, capture_output=True, text=True
        )
        return {line.rstrip() for line in done.stdout.split("\n")}

    def _check(self, line: str, command: str, piped: set[str] | None = None) -> None:
        is_told = command.startswith(("myllm generate", "myllm write")) and piped is None
        is_text = is_told or line.removeprefix("> ") in (piped or ())
        if cell_len(line) > self.columns and "myllm " not in line and not is_text:
            self.wrong.append(f"{cell_len(line)} columns: {line!r} of {command}")
        if "\N{REPLACEMENT CHARACTER}" in line:
            self.wrong.append(f"replacement character: {line!r} of {command}")
        if (match := TOLD.search(line)) and match[1] not in self.told and match[1] != command:
            self.told.append(match[1])

    def _on_terminal(self, command: str, keys: str, stop_at: str) -> tuple[int, str]:
        controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self.columns, 0, 0))
        process = subprocess.Popen(
            command, shell=True, cwd=self.folder, stdin=terminal, stdout=terminal, stderr=terminal,
            start_new_session=True, executable="/bin/bash", close_fds=True,
            preexec_fn=_in_the_foreground,
        )  # fmt: skip
        os.close(terminal)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, typed, stopped = "", keys.splitlines(keepends=True), False
        while True:
            ready, _, _ = select.select([controller], [], [], 1.0)
            if ready:
                try:
                    data = os.read(controller, 1 << 16)
                except OSError:  # the last process has closed it
                    break
                if not data:
                    break
                text += decoder.decode(data)
                for _ in range(data.count(CURSOR_ASKED)):
                    os.write(controller, CURSOR_TOLD)
            elif typed:
                os.write(controller, typed.pop(0).encode())
            if stop_at and not stopped and stop_at in text:
                time.sleep(2)
                os.killpg(process.pid, signal.SIGINT)
                stopped = True
        os.close(controller)
        return process.wait(), text


def _in_the_foreground() -> None:
    """Gives a new process the terminal, and Ctrl-C, which a shell takes from what it starts in
    the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def shown(raw: str) -> list[str]:
    """The lines that stand on a terminal of any width in the end, as it obeys what it is told."""
    screen: list[list[str]] = [[]]
    row = column = 0
    for number, sequence, character in PIECES.findall(raw):
        n = int(number) if number.isdigit() else 1
        if sequence in "AB" and sequence:
            row = max(0, row + (-n if sequence == "A" else n))
        elif sequence in "CD" and sequence:
            column = max(0, column + (n if sequence == "C" else -n))
        elif sequence == "K":
            del screen[row][0 if number == "2" else column :]
        elif sequence == "J":
            del screen[row][column:], screen[row + 1 :]
        elif character == "\n":
            row += 1
        elif character in ("\r", "\b") and character:
            column = 0 if character == "\r" else max(0, column - 1)
        elif character:
            cells = [character, *[""] * (cell_len(character) - 1)]  # "" where a wide one goes on
            screen[row] += [" "] * (column - len(screen[row]))
            screen[row][column : column + len(cells)] = cells
            column += len(cells)
        screen += [[] for _ in range(row + 1 - len(screen))]
    return ["".join(line).rstrip() for line in screen]


def main() -> None:
    """Reads the arguments, spends the hour, tells what was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--train", default="", help="more flags of myllm train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        hour = Hour(Path(place), options.columns)
        shutil.copy(options.text, place)
        spend(hour, options.text.name, options.train)
    print("\n".join(["", "what is wrong:", *hour.wrong] if hour.wrong else ["", "nothing wrong"]))
    sys.exit(bool(hour.wrong))


def spend(hour: Hour, text: str, flags: str) -> None:
    """The hour."""
    train = f"myllm train {text} {flags}".strip()
    hour.run(train, stop_at="step ", expect=130)
    hour.told.clear()
    hour.run("myllm train --resume")
    hour.run_told()
    hour.run("myllm generate")
    hour.run(f"myllm generate --num-samples 2 --max-new-tokens 40 --temperature 1.2{SEED}")
    hour.run(f"myllm write{SEED}", keys="Es war\n\n/probs\n/settings\n/top\nexit\n")
    hour.run(f"myllm chat{SEED}", keys="/help\n/quit\n")
    hour.run("myllm evaluate")
    hour.run(f"myllm evaluate {text}")
    hour.run(f"{train} --max-steps 20 --run second")
    hour.told.clear()
    hour.run("myllm runs")
    hour.run("myllm runs compare second " + Path(text).stem)
    hour.run("myllm runs show second")
    hour.run_told()
    hour.run("myllm runs delete second --yes")
    hour.run("myllm runs")


if __name__ == "__main__":
    main()
