"""The command line `vla`; this module imports nothing, so that Ctrl-C finds `main` in charge."""


def main() -> None:
    """Run the command line. Ctrl-C at any moment: one line on standard error, exit code 130."""
    try:
        from vla_policy_node.cli import interrupts

        with interrupts.handled():
            from vla_policy_node.cli.tree import app

            app()
    except KeyboardInterrupt:  # before there was a handler, or after
        import os

        os.write(2, b'Interrupted.\n')
        raise SystemExit(130) from None


def __getattr__(name: str) -> object:
    if name == 'app':
        from vla_policy_node.cli.tree import app

        return app
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
