"""The command line, ``eventrunner`` or ``python -m eventrunner``: what a run has left, without a line of Python.

What a sub-command needs is imported when it is called: most of them do without torch, and start at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from eventrunner.errors import EventRunnerError, OptionError
from eventrunner.report.commands.output import Output, on_one_line
from eventrunner.version import __version__

__all__ = ["main"]

_NAME = "eventrunner"
_FAILED, _USAGE = 1, 2
_CLOSED, _INTERRUPTED = (128 + number for number in (signal.SIGPIPE, signal.SIGINT))  # as a shell has it


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a command line says, and return the process's exit code.

    1 where something is not found or damaged, 2 where the command line can't be meant; the sentence that says so is on
    standard error.
    """
    asked = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files may be in no encoding
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _call(asked, Output.to_stdout(asked.json))
        if sys.stdout is not None:
            sys.stdout.flush()
    except (EventRunnerError, OSError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        return _INTERRUPTED
    return code


def _failed(error: EventRunnerError | OSError) -> int:
    if isinstance(error, EventRunnerError):
        _complain(str(error))
        return _USAGE if isinstance(error, OptionError) else _FAILED
    if not isinstance(error, BrokenPipeError):
        _complain(f"{error.strerror}: {os.fsdecode(error.filename)}" if error.filename else str(error))
    if error.filename is None:  # it may be standard output's
        from eventrunner.report.log import drop_unwritten  # which imports structlog

        drop_unwritten(sys.stdout, error)
    return _CLOSED if isinstance(error, BrokenPipeError) else _FAILED


def _complain(sentence: str) -> None:
    print(f"{_NAME}: {on_one_line(sentence)}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line, without repeating the usage."""
        _complain(f"{message}; '{self.prog} --help' has what is allowed")
        sys.exit(_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=_NAME, description="Look at runs and checkpoints of eventrunner.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{_NAME} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, says: str) -> Any:
        added = commands.add_parser(name, help=says, description=f"{says[0].upper()}{says[1:]}.", allow_abbrev=False)
        added.add_argument("--json", action="store_true", help="answer with one JSON document")
        return added.add_argument

    add = command("ls", "list the runs below a folder, newest last, or the checkpoints of a run")
    add("folder", nargs="?", type=Path, metavar="FOLDER", help="by default runs, or else the working directory")
    add = command("show", "print what is known of a run or of a checkpoint")
    add("path", type=Path, metavar="PATH")
    add("--tensors", action="store_true", help="list a checkpoint's tensors with their shapes")
    add = command("verify", "read checkpoints through and compare every byte with what was committed")
    add("paths", nargs="+", type=Path, metavar="PATH", help="a checkpoint, a run, or a folder with runs")
    add = command("diff", "compare the weights of two checkpoints or files, or the settings of two runs")
    add("first", type=Path, metavar="A")
    add("second", type=Path, metavar="B")
    add = command("export", "write the weights of a checkpoint into one new file")
    add("path", type=Path, metavar="CHECKPOINT")
    add("target", type=Path, metavar="OUT")
    add("--to", choices=("safetensors", "pth"), help="its format; by default that of its suffix")
    command("env", "print versions, devices and threads, for a bug report")
    return parser


def _call(asked: argparse.Namespace, out: Output) -> int:
    match asked.command:
        case "ls":
            from eventrunner.report.commands.show import ls

            return ls(asked.folder, out)
        case "show":
            from eventrunner.report.commands.show import show

            return show(asked.path, asked.tensors, out)
        case "verify":
            from eventrunner.report.commands.verify import verify

            return verify(asked.paths, out)
        case "diff":
            from eventrunner.report.commands.diff import diff

            return diff(asked.first, asked.second, out)
        case "export":
            from eventrunner.report.commands.weights import export

            return export(asked.path, asked.target, asked.to, out)
        case _:
            from eventrunner.report.commands.env import env

            return env(out)


if __name__ == "__main__":
    sys.exit(main())
