"""What all commands of `vla` share: values that no command can use are refused, and so is work
that fails for a reason outside of this program, with one sentence and an exit code."""

from __future__ import annotations

import errno
import inspect
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from vla_policy_node.cli import interrupts
from vla_policy_node.cli.refusal import refusal

_LARGEST = 2**31 - 1  # of a whole number; no command counts so far
_TRACEBACK = 'VLA_TRACEBACK'  # environment variable: show where an unforeseen error arose


class CheckedCommand(TyperCommand):
    """A command whose errors are sentences."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty names of files, and numbers that nothing can be counted with."""
        self._check_given(ctx, args)
        left = super().parse_args(ctx, args)
        param: Any
        for param in self.params:
            given = ctx.params.get(param.name)
            for value in given if isinstance(given, (list, tuple)) else [given]:
                if isinstance(value, float) and not math.isfinite(value):
                    raise typer.BadParameter(f'{value} is no finite number.', ctx, param=param)
                if isinstance(value, int) and abs(value) > _LARGEST:
                    raise typer.BadParameter(f'{value} is too large.', ctx, param=param)
        return left

    def _check_given(self, ctx: Any, args: Sequence[str]) -> None:
        """An unset shell variable gives ''; as a path that would be the working directory."""
        assert self.callback is not None  # or there is nothing to run
        types = {name: str(parameter.annotation) for name, parameter in
                 inspect.signature(self.callback, eval_str=True).parameters.items()}
        options: dict[str, Any] = {
            option: param for param in self.params for option in param.opts}
        for before, arg in zip(['', *args], args, strict=False):
            name, equals, value = arg.partition('=')
            if value or not (equals or not arg):
                continue
            param = options.get(name if equals else before)
            if param is None and not arg:
                raise typer.BadParameter("An argument is empty ('').", ctx)
            if param is not None and 'Path' in types[param.name]:
                raise typer.BadParameter('It is empty; name a file or a folder.', ctx, param=param)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what it does not refuse itself becomes a sentence here."""
        stdout: Any = sys.stdout
        with suppress(AttributeError, OSError):
            stdout.reconfigure(errors='backslashreplace')  # names of files may be no UTF-8
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            interrupts.say(str(interrupt))
            raise typer.Exit(interrupts.INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except Exception as error:
            if interrupts.came():  # a library made something else of it
                interrupts.say()
                raise typer.Exit(interrupts.INTERRUPTED) from None
            if os.environ.get(_TRACEBACK):
                raise
            raise refusal(_sentence(error)) from None


def _sentence(error: Exception) -> str:
    """Say what went wrong outside of us, or that it is our own mistake."""
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return 'The disk is full; make room, or write elsewhere.'
        what = f"'{os.fsdecode(error.filename)}'" if error.filename else 'A file'
        return f'{what} cannot be read or written: {error.strerror or error}.'
    if isinstance(error, UnicodeEncodeError):
        return (f'{error.object!a} is no text in {error.encoding.upper()}; take a name that '
                'is.')
    if isinstance(error, ValueError):
        return f'{error}'
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':
        return 'There is not enough memory for this; ask for less at once, e.g. fewer workers.'
    place, at = '', error.__traceback__
    while at is not None:
        place = f' ({Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno})'
        at = at.tb_next
    reason = ' '.join(f'{error}'.split())
    return (f'vla did not expect this: {type(error).__name__}: {reason}{place}; with '
            f'{_TRACEBACK}=1 in the environment the same command shows where it arose.')
