"""`edgechat completion`: print scripts for shells: completion, the hook of `explain`, and the key of `do`."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--hook", is_flag=True, help="Print the hook that remembers the last command, for `edgechat explain`.")
@click.option("--keys", is_flag=True, help="Print the key binding of Alt+E, which turns the typed text into a command.")
def completion(shell: str, hook: bool, keys: bool) -> None:
    """Print a completion script, or a hook and a key binding.

    Install the completion script for your shell with one of these commands:

    \b
    bash:
    edgechat completion bash > ~/.local/share/bash-completion/completions/edgechat
    zsh:
    edgechat completion zsh > "${fpath[1]}/_edgechat"
    fish:
    edgechat completion fish > ~/.config/fish/completions/edgechat.fish

    The hook and the key binding are optional. Add one of these lines to ~/.bashrc, ~/.zshrc or
    ~/.config/fish/config.fish:

    \b
    eval "$(edgechat completion bash --hook --keys)"
    eval "$(edgechat completion zsh --hook --keys)"
    edgechat completion fish --hook --keys | source

    The hook keeps the last command and its exit code in the shell, and passes them on to `edgechat explain` only.
    """  # noqa: D301  (click reads the control character)
    if hook or keys:
        from edgechat.cli.shell_hooks import make_script

        click.echo(make_script(shell, hook=hook, keys=keys))
        return
    from click.shell_completion import get_completion_class

    from edgechat.cli.root import edgechat

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"No completion script for {shell}. Choose bash, zsh or fish.")
    click.echo(completion_class(edgechat, {}, "edgechat", "_EDGECHAT_COMPLETE").source())
