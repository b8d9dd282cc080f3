"""`edgechat completion`: completion scripts for shells."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    \b
    bash:  edgechat completion bash > ~/.local/share/bash-completion/completions/edgechat
    zsh:   edgechat completion zsh > "${fpath[1]}/_edgechat"
    fish:  edgechat completion fish > ~/.config/fish/completions/edgechat.fish
    """  # noqa: D301  (click reads the control character)
    from click.shell_completion import get_completion_class

    from edgechat.cli.root import edgechat

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(edgechat, {}, "edgechat", "_EDGECHAT_COMPLETE").source())
