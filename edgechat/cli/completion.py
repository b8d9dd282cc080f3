"""`edgechat completion`: print shell completion scripts."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell completion script.

    Install the script for your shell with one of these commands:

    \b
    bash:
    edgechat completion bash > ~/.local/share/bash-completion/completions/edgechat
    zsh:
    edgechat completion zsh > "${fpath[1]}/_edgechat"
    fish:
    edgechat completion fish > ~/.config/fish/completions/edgechat.fish
    """  # noqa: D301  (click reads the control character)
    from click.shell_completion import get_completion_class

    from edgechat.cli.root import edgechat

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"No completion script for {shell}. Choose bash, zsh or fish.")
    click.echo(completion_class(edgechat, {}, "edgechat", "_EDGECHAT_COMPLETE").source())
