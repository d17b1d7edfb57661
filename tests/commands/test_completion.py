"""The printed scripts know every command and every option that a command's help lists."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lowtide.cli import main
from lowtide.commands import COMMANDS


def script(shell, capsys):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


ASK = """
COMP_WORDS=({words}); COMP_CWORD={last}; _lowtide; echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capsys):
    text = script("bash", capsys)
    asked = {
        "lowtide exp": "export",
        "lowtide train --memo": "--memory-budget",
        "lowtide export --format on": "onnx",
        "lowtide train --method unip": "unipt",
        "lowtide inspect cka --unb": "--unbiased",
        "lowtide inspect ck": "cka",
    }
    lines = [ASK.format(words=w, last=w.count(" ")) for w in asked]
    done = subprocess.run(
        ["bash", "-euc", text + "".join(lines)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == list(asked.values())


def test_fish_and_zsh_hold_the_same_words(capsys):
    fish = script("fish", capsys)
    for name in COMMANDS:
        assert f"-a {name} -d" in fish
    assert "__fish_seen_subcommand_from train' -l memory-budget" in fish
    assert script("zsh", capsys).endswith(script("bash", capsys))
    assert main(["completion", "csh"]) == 2
