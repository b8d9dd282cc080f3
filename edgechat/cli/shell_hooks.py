"""Scripts for bash, zsh and fish: the hook that remembers the last command, and the key binding for `edgechat do`.

The hook keeps the last command and its exit code in variables of the shell, which are not exported: nothing is written
to disk, and they end with the shell. A function called `edgechat` passes them on to `edgechat explain` only.
"""

from __future__ import annotations

from typing import Final

COMMAND_VARIABLE: Final = "EDGECHAT_LAST_COMMAND"
STATUS_VARIABLE: Final = "EDGECHAT_LAST_STATUS"
MAX_COMMAND_CHARS: Final = 4000
"""Maximum length of a command that the hook remembers; the rest is cut off."""

_BASH_HOOK: Final = r"""
__edgechat_prompt() {
    local status=$? entry control=:${HISTCONTROL-}:
    entry=$(HISTTIMEFORMAT= builtin history 1)
    # At the first prompt of a shell, the newest entry is a command of an earlier shell.
    if [[ -z ${__edgechat_is_ready-} || ! $entry =~ ^\ *[0-9]+[\ *]\ (.*) ]]; then
        :
    elif [[ ${BASH_REMATCH[1]} == edgechat\ explain* ]]; then
        :
    elif [[ $entry != "$__edgechat_entry" ]]; then
        __edgechat_command=${BASH_REMATCH[1]:0:MAX_CHARS} __edgechat_status=$status
    elif [[ $control == *dups:* || $control == *:ignoreboth:* ]]; then
        # The same command again. It looks like an empty line (after Ctrl-C, the code is 130), or like a command that is
        # not in the history; then the exit code is unknown, unless it is the same.
        if [[ $status != "$__edgechat_status" ]]; then
            __edgechat_status=$status
            [[ $status != 130 && -z ${HISTIGNORE-} && $control != *:ignore[bs]* ]] || __edgechat_status=
        fi
    fi
    __edgechat_entry=$entry __edgechat_is_ready=1
    return "$status"
}
edgechat() {
    if [[ ${1-} == explain && -n ${__edgechat_command-} ]]; then
        EDGECHAT_LAST_COMMAND=$__edgechat_command EDGECHAT_LAST_STATUS=$__edgechat_status command edgechat "$@"
    else
        command edgechat "$@"
    fi
}
case ";${PROMPT_COMMAND[*]-};" in
    *__edgechat_prompt*) ;;
    *) PROMPT_COMMAND="__edgechat_prompt${PROMPT_COMMAND:+;$PROMPT_COMMAND}" ;;
esac
"""
_ZSH_HOOK: Final = r"""
__edgechat_preexec() {
    [[ $1 == edgechat\ explain* || ( -o hist_ignore_space && $1 == ' '* ) ]] || __edgechat_started=${1[1,MAX_CHARS]}
}
__edgechat_precmd() {
    __edgechat_last_status=$?
    if [[ -n ${__edgechat_started-} ]]; then
        __edgechat_command=$__edgechat_started __edgechat_status=$__edgechat_last_status __edgechat_started=
    fi
    return $__edgechat_last_status
}
edgechat() {
    if [[ ${1-} == explain && -n ${__edgechat_command-} ]]; then
        EDGECHAT_LAST_COMMAND=$__edgechat_command EDGECHAT_LAST_STATUS=$__edgechat_status command edgechat "$@"
    else
        command edgechat "$@"
    fi
}
autoload -Uz add-zsh-hook
add-zsh-hook preexec __edgechat_preexec
# The first function sees the exit code of the command.
precmd_functions=(__edgechat_precmd ${precmd_functions:#__edgechat_precmd})
"""
_FISH_HOOK: Final = r"""
function __edgechat_postexec --on-event fish_postexec
    set -l code $status
    string match --quiet --regex '^(edgechat explain| )' -- "$argv[1]"; and return
    set -g __edgechat_status $code
    set -g __edgechat_command (string sub --length MAX_CHARS -- "$argv[1]" | string collect)
end
function edgechat --wraps edgechat
    if test "$argv[1]" = explain; and test -n "$__edgechat_command"
        EDGECHAT_LAST_COMMAND="$__edgechat_command" EDGECHAT_LAST_STATUS="$__edgechat_status" command edgechat $argv
    else
        command edgechat $argv
    end
end
"""
_BASH_KEYS: Final = r"""
__edgechat_write_command() {
    [[ -n $READLINE_LINE ]] || return
    local text
    text=$(command edgechat do --print -- "$READLINE_LINE" </dev/tty) || return
    READLINE_LINE=$text READLINE_POINT=${#text}
}
bind -x '"\ee": __edgechat_write_command'
"""
_ZSH_KEYS: Final = r"""
__edgechat_write_command() {
    [[ -n $BUFFER ]] || return
    local text
    zle -I
    if text=$(command edgechat do --print -- "$BUFFER" </dev/tty); then
        BUFFER=$text CURSOR=${#text}
    fi
}
zle -N __edgechat_write_command
bindkey '\ee' __edgechat_write_command
"""
_FISH_KEYS: Final = r"""
function __edgechat_write_command
    set -l request (commandline | string collect)
    test -n "$request"; or return
    set -l text (command edgechat do --print -- "$request" </dev/tty | string collect)
    test -n "$text"; and commandline --replace -- $text
    commandline -f repaint
end
bind \ee __edgechat_write_command
bind -M insert \ee __edgechat_write_command
"""
_HOOKS: Final = {"bash": _BASH_HOOK, "zsh": _ZSH_HOOK, "fish": _FISH_HOOK}
_KEYS: Final = {"bash": _BASH_KEYS, "zsh": _ZSH_KEYS, "fish": _FISH_KEYS}


def make_script(shell: str, *, hook: bool, keys: bool) -> str:
    """Return the script that installs the hook, the key binding, or both, in a running shell."""
    parts = [_HOOKS[shell].replace("MAX_CHARS", str(MAX_COMMAND_CHARS))] * hook + [_KEYS[shell]] * keys
    return "".join(parts).strip("\n")
