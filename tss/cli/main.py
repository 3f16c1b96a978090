"""`tss COMMAND …`: find the command, run it, and turn every failure into one line and an exit code."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tss.cli import check, data, env, predict, presets, report, run, serve, study, tasks
from tss.errors import TssError
from tss.io import WINDOWS, nowhere

COMMANDS = (run, check, study, report, predict, serve, tasks, data, presets, env)
FAILED, MISUSED, UNEXPECTED, INTERRUPTED = 1, 2, 70, 130


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, without the usage block."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """Return the parser with all commands, without slow imports."""
    parser = Parser(
        prog="tss",
        description="Train a sequence of language tasks on one frozen model, without forgetting.",
        epilog="Start with `tss run demo`. TSS_DEBUG=1 shows tracebacks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    for command in COMMANDS:
        sub = command.register(subparsers, parents=[common])
        sub.set_defaults(run=command.run, parser=sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Exit codes: 0 success, 1 bad input, 2 bad usage, 70 unexpected error, 130 interrupted."""
    if sys.platform == "win32":
        print(f"tss: {WINDOWS}", file=sys.stderr)
        return MISUSED
    _prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    try:
        _check_command(parser, arguments)
        args, rest = parser.parse_known_args(arguments)
        if args.version:
            return _print_version()
        if args.command is None:
            parser.print_help()
            return MISUSED
        _take_rest(args, rest, arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return _guarded(args)


def _prepare_streams() -> None:
    """Keep a finished command from failing because its last line cannot be printed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # the caller closed it
            setattr(sys, name, nowhere())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _guarded(args: argparse.Namespace) -> int:
    """Run the command; a failure becomes one line on standard error unless a traceback was requested."""
    debug = args.debug or os.environ.get("TSS_DEBUG", "") not in ("", "0")
    try:
        code = int(args.run(args) or 0)
        sys.stdout.flush()  # flush here, where a closed pipe is handled
        return code
    except KeyboardInterrupt:
        print("tss: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader closed the pipe: exit silently
        return FAILED
    except MemoryError as error:
        if debug:
            raise
        print(f"tss: out of memory ({_one_line(error)}); use smaller sizes, or a machine with more", file=sys.stderr)
        return FAILED
    except (TssError, OSError, UnicodeError) as error:
        if debug:
            raise
        print(f"tss: {_one_line(error)}", file=sys.stderr)
        return FAILED
    except ModuleNotFoundError as error:
        root = _root(error)
        if isinstance(root, KeyboardInterrupt):  # during an import that transformers defers
            print("tss: interrupted", file=sys.stderr)
            return INTERRUPTED
        if debug:
            raise
        if root is error and error.name is not None:
            print(f"tss: the package {error.name} is not installed: pip install 'tss[train]'", file=sys.stderr)
        else:  # an installed package that does not work
            print(
                f"tss: a package cannot be imported ({type(root).__name__}: {_one_line(root)}); reinstall it, or "
                "install versions that fit together (--debug shows the traceback)",
                file=sys.stderr,
            )
        return FAILED
    except Exception as error:
        if debug:
            raise
        message = f"{type(error).__name__}: {_one_line(error)}"
        print(f"tss: {message} (unexpected; --debug shows the traceback)", file=sys.stderr)
        return UNEXPECTED


def _root(error: BaseException) -> BaseException:
    """Return the exception that an exception was raised from, in the end."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _one_line(error: BaseException) -> str:
    """Return the message: lines of a `TssError` stay separate, one problem each; other lines are joined."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, TssError):
        return "\ntss: ".join(lines)
    return " ".join(lines) or type(error).__name__


def _check_command(parser: Parser, arguments: Sequence[str]) -> None:
    """Exit with an error for an unknown command, suggesting the closest known one."""
    word = next((a for a in arguments if not a.startswith("-")), None)
    names = [command.__name__.rpartition(".")[2] for command in COMMANDS]
    if word is not None and word not in names:
        near = difflib.get_close_matches(word, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
        parser.error(f"no command {word!r}; {hint}")


def _take_rest(args: argparse.Namespace, rest: Sequence[str], arguments: Sequence[str]) -> None:
    """Append words after options to the command's words; for an unknown option, suggest the closest known one."""
    unknown = next((a for a in rest if a.startswith("-")), None)
    if unknown is not None:
        known = [option for action in args.parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown.partition("=")[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "configuration keys are written key=value"
        if not near and hasattr(args, "words"):
            hint = _as_key(unknown, arguments) or hint
        args.parser.error(f"no option {unknown!r}; {hint}")
    if rest and not hasattr(args, "words"):
        args.parser.error(f"unexpected argument {rest[0]!r}")
    if rest:
        args.words = [*args.words, *rest]


def _as_key(option: str, arguments: Sequence[str]) -> str | None:
    """Return a hint how to write a configuration key that was given as an option; None if it is not a key."""
    from tss.run.config import RunConfig
    from tss.run.config_errors import all_keys

    name, given, value = option.lstrip("-").replace("-", "_").partition("=")
    after = arguments[arguments.index(option) + 1 :]
    value = value if given else after[0] if after and "=" not in after[0] and after[0][:1] != "-" else "VALUE"
    paths = {path.rsplit(".", 1)[-1]: path for path in reversed(all_keys(RunConfig))}
    path = name if name in all_keys(RunConfig) else paths.get(name)
    return None if path is None else f"configuration keys are written key=value: {path}={value}"


def _print_version() -> int:
    from importlib.metadata import version

    print(f"tss {version('tss')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
