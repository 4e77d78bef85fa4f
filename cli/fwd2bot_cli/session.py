"""What one invocation of the command carries from place to place: its switches, and where its models come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import typer

from fwd2bot_cli.console import Output
from fwd2bot_cli.models import Models, PretrainedModels


@dataclass(kw_only=True)
class Session:
    """Made by :func:`fwd2bot_cli.main.main` and reached by every command as ``Context.obj``."""

    models: Models = field(default_factory=PretrainedModels)
    """Replaced by tests: a fake model behind the very same commands."""
    debug: bool = False
    quiet: bool = False

    @property
    def output(self) -> Output:
        return Output(quiet=self.quiet)


def session_of(context: typer.Context) -> Session:
    return cast(Session, context.obj)
