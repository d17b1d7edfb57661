"""`lowtide completion`."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from string import Template

from ..errors import UnknownName
from ..inference.exports import FORMATS
from ..memory.policies import POLICIES
from ..methods import METHODS
from ..training.parser import Parser
from .inspect import VIEWS

SUMMARY = "Print a script that completes commands and options in bash, zsh or fish."
Commands = Mapping[str, tuple[Callable[[Sequence[str]], None], str]]
VALUES: dict[str, Sequence[str]] = {
    "--method": sorted(METHODS),
    "--policy": sorted(POLICIES),
    "--format": sorted(FORMATS),
}
"""Options whose values are names that lowtide knows; for any other a file is offered."""
FIRST: dict[str, Sequence[str]] = {
    "completion": ("bash", "zsh", "fish"),
    "data": ("check",),
    "inspect": tuple(VIEWS),
}
"""Commands whose first word is one of these."""
BASH = Template("""\
_lowtide() {
    local word=$${COMP_WORDS[COMP_CWORD]} before=$${COMP_WORDS[COMP_CWORD-1]} words=""
    if [ "$$COMP_CWORD" = 1 ]; then
        words="$commands --help --version"
    else
        case "$$before" in
$values
        esac
        if [ -z "$$words" ] && [[ "$$word" == -* ]]; then
            case "$${COMP_WORDS[1]}" in
$options
            esac
        fi
    fi
    COMPREPLY=($$(compgen -W "$$words" -- "$$word"))
}
complete -o default -F _lowtide lowtide
""")


def completion(args: Sequence[str], commands: Commands) -> None:
    """Run `lowtide completion`.

    Args:
        args: The command's arguments.
        commands: Every command, by name.

    Raises:
        UnknownName: There is no script for that shell.
    """
    parser = Parser("completion", SUMMARY)
    parser.add_argument(
        "shell", type=str, help='bash, zsh or fish: eval "$(lowtide completion bash)"'
    )
    shell = parser.read(args)["shell"]
    if shell not in FIRST["completion"]:
        raise UnknownName("shell", shell, FIRST["completion"])
    texts = {name: _help(name, run) for name, (run, _) in commands.items() if name != "completion"}
    options = {name: _options(text) for name, text in texts.items()}
    if shell == "fish":
        print(_fish({n: summary for n, (_, summary) in commands.items()}, options))
        return
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_bash(list(commands), options), end="")


def _help(name: str, run: Callable[[Sequence[str]], None]) -> str:
    """Ask a command, and what stands behind its first word, for its help."""
    said = io.StringIO()
    for first in FIRST.get(name, ()) if name == "inspect" else ("",):
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            run([*([first] if first else []), "--help"])
    return said.getvalue()


def _options(text: str) -> list[str]:
    listed = re.findall(r"^  (?:-h, )?(--[\w.-]+)", text, re.MULTILINE)
    return [*dict.fromkeys(listed), "--import"]


def _bash(commands: Sequence[str], options: Mapping[str, Sequence[str]]) -> str:
    def cases(rows: Mapping[str, Sequence[str]], indent: str) -> str:
        return "\n".join(f'{indent}{key}) words="{" ".join(v)}" ;;' for key, v in rows.items())

    return BASH.substitute(
        commands=" ".join(commands),
        values=cases({**VALUES, **FIRST}, " " * 8),
        options=cases(options, " " * 12),
    )


def _fish(summaries: Mapping[str, str], options: Mapping[str, Sequence[str]]) -> str:
    lines = []
    for name, summary in summaries.items():
        told = summary.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c lowtide -n __fish_use_subcommand -f -a {name} -d '{told}'")
    for name, flags in options.items():
        for flag in flags:
            values = f" -x -a '{' '.join(VALUES[flag])}'" if flag in VALUES else ""
            seen = f"-n '__fish_seen_subcommand_from {name}'"
            lines.append(f"complete -c lowtide {seen} -l {flag.removeprefix('--')}{values}")
    for name, words in FIRST.items():
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        lines.append(f"complete -c lowtide {seen} -f -a '{' '.join(words)}'")
    return "\n".join(lines)
