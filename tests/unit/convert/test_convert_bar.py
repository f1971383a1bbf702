"""What a conversion shows while it works, by the real commands."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hf_models import make_folder

from octo_megatron.convert import bar
from octo_megatron.convert.export_stage import Wish, export_folder
from octo_megatron.convert.import_stage import import_folder


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    """A real terminal on stderr: it is drawn on, and what stays on stdout is the result alone."""
    source = make_folder(tmp_path / "hf", "llama-tied")
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "octo_megatron.convert.command",
        "import",
        str(source),
        str(tmp_path / "ckpt"),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "TERM": "xterm"}, stdout=subprocess.PIPE, stderr=theirs, text=True
    )
    os.close(theirs)
    drawn = io.BytesIO()
    while True:
        try:
            drawn.write(os.read(ours, 4096))
        except OSError:  # the terminal is closed with its last process
            break
    os.close(ours)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert re.fullmatch(r".*ckpt: \d+ tensors, .*\n", said)
    # how much of so short a work is seen depends on the machine; the last phase is drawn at the end
    assert "gate: " in drawn.getvalue().decode()


def test_without_a_terminal_it_says_a_line_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_folder(tmp_path / "hf", "llama-tied")
    capsys.readouterr()  # transformers' own
    with bar.shown() as progress:
        import_folder(source, tmp_path / "checkpoint", gate=False, progress=progress)
    assert capsys.readouterr().err == ""  # it was done before a line was due
    monkeypatch.setattr(bar, "_QUIET_SECONDS", 0.0)
    with bar.shown() as progress:
        export_folder(tmp_path / "checkpoint", tmp_path / "out", Wish(gate=False), progress=progress)
    size = (tmp_path / "out/model.safetensors").stat().st_size // 1_000_000
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(re.fullmatch(r"export, MB \d+/\d+", line) for line in lines)
    assert int(lines[-1].split()[-1].split("/")[0]) >= size
    with bar.shown(visible=False) as progress:
        progress("export", 1, 2)
    assert capsys.readouterr().err == ""
