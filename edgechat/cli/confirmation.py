"""Confirmation of deletions on the command line."""

from __future__ import annotations

import click

from edgechat.errors import DeclinedError


def confirm_deletion(question: str, *, err: bool = False) -> None:
    """Ask a question on standard output, or on standard error if `err`. Raises DeclinedError unless the answer is y."""
    try:
        is_confirmed = click.confirm(question, err=err)
    except click.Abort as error:  # click's error for Ctrl-C and for the end of the input
        if isinstance(error.__context__, KeyboardInterrupt):
            raise
        is_confirmed = False
    if not is_confirmed:
        raise DeclinedError("Nothing was deleted, because the question was not answered with y.")
