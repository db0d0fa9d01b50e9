"""Options that send the streams of a robot to other topics: --NAME-topic, for any contract."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import typer

from vla_policy_node.cli.checked import CheckedCommand
from vla_policy_node.common.contract_files import default_streams

_OPTION = re.compile(r'--([a-z][a-z0-9_-]*)-topic')
_META = 'vla.topics'


class TopicCommand(CheckedCommand):
    """A command that also takes --NAME-topic TOPIC of streams that only a contract knows.

    The options of the default contract are declared; whoever reads the contract refuses the names
    that it does not have.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the options of undeclared streams out, then read the others."""
        declared = {name for param in self.params for name in param.opts}
        topics: dict[str, str] = {}
        left: list[str] = []
        given = iter(args)
        for arg in given:
            if arg == '--':
                left += [arg, *given]
                break
            option, equals, value = arg.partition('=')
            named = _OPTION.fullmatch(option)
            if named is None or option in declared:
                left.append(arg)
                continue
            if not equals:
                value = next(given, '')
            if not value:
                raise typer.BadParameter(f"Option '{option}' requires an argument.", ctx)
            topics[named[1].replace('-', '_')] = value
        ctx.meta[_META] = topics
        return super().parse_args(ctx, left)


def more_topics(context: typer.Context) -> Mapping[str, str]:
    """Return stream -> topic of the options that are not declared, of the running command."""
    return context.meta[_META]


def with_topic_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Declare an option for each stream of the default contract; they are its `**topics`."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    parameters += [
        inspect.Parameter(f'{name}_topic', inspect.Parameter.KEYWORD_ONLY, annotation=str,
                          default=typer.Option('', help=text, show_default=False,
                                               rich_help_panel='Topics'))
        for name, text in default_streams().items()]
    changed: Any = command
    changed.__signature__ = signature.replace(parameters=parameters)
    changed.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
