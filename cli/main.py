"""The `rwk` command: finds the command that was named, and turns every failure into one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from importlib.metadata import version

import click

from rwk.cli.console import warnings_as_notes
from rwk.rewards.errors import RunFailed

COMMANDS = (
    "score",
    "train-reward",
    "calibrate",
    "probe",
    "compare",
    "sample",
    "evaluate",
    "optimize",
    "study",
    "demo",
    "serve",
    "list",
    "info",
)
"""Each is `command` in the module of that name below rwk.cli, with underscores for dashes."""

WRONG_CALL = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
PATHS = {
    FileNotFoundError: "there is no such file or folder; correct the path.",
    FileExistsError: "it is there already; name another path.",
    IsADirectoryError: "a file is needed, got a folder; name a file.",
    NotADirectoryError: "part of this path is a file, not a folder; correct the path.",
    PermissionError: "permission is denied to this user; change the permissions, or name another path.",
}
"""What is said of a path that the system refuses."""


class Commands(click.Group):
    """A group that imports a command when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module("rwk.cli." + cmd_name.replace("-", "_"))
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            advice = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}."
            raise click.UsageError(f"no command {name!r}; {advice}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("rwk"), prog_name="rwk", message="%(prog)s %(version)s")
def rwk() -> None:
    """Reward models for image generation: score, fine-tune, calibrate, and let a generator learn from them."""


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 1 the run failed, 2 the call was wrong, 130 interrupted."""
    try:
        with warnings_as_notes():
            code = rwk.main(args, prog_name="rwk", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe went away, as in `rwk list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (KeyboardInterrupt, click.Abort):
        code = _failed("interrupted.", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        code = _failed(_usage(error), error.exit_code)
    except WRONG_CALL as error:
        code = _failed(_sentence(error), 2)
    except RunFailed as error:
        code = _failed(str(error), 1)
    except Exception as error:
        code = _failed(f"{type(error).__name__}: {_sentence(error)} (RWK_TRACEBACK=1 shows where)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: click.ClickException) -> str:
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx is not None:
        message += f" See `{error.ctx.command_path} --help`."
    return message


def _sentence(error: Exception) -> str:
    """The error without "[Errno 2]", and of a path with what to do."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        told = next((told for kind, told in PATHS.items() if isinstance(error, kind)), f"{error.strerror}.")
        return f"{error.filename}: {told}"
    return str(error)


def _failed(message: str, code: int) -> int:
    """Prints the error as one line, after its traceback where RWK_TRACEBACK=1."""
    if os.environ.get("RWK_TRACEBACK") == "1":
        traceback.print_exc()
    click.echo("rwk: " + " ".join(message.split()), err=True)
    return code
