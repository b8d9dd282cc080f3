"""`edgechat bench agent`: the benchmark of agent sessions."""

from __future__ import annotations

from pathlib import Path

import click

from edgechat.cli.bench_options import count_option, json_option, model_option, peer_option, threads_option
from edgechat.cli.json_output import echo_json
from edgechat.cli.progress import StderrStatus


@click.command()
@click.argument("session", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_option
@peer_option("llama-server")
@threads_option
@count_option("--ctx", "n_ctx", "Context length in tokens.", default=20_480, minimum=1024)
@count_option("--turns", "n_turns", "Number of turns of the generated session.", default=20, minimum=3)
@count_option("--system-lines", "n_system_lines", "Lines of its system prompt, of 16 tokens each.", default=750)
@count_option("--result-lines", "n_result_lines", "Lines of the result of each tool call.", default=16)
@count_option("--peer-turns", "n_peer_turns", "Turns in which llama-server gets the changing line.", default=3)
@json_option
def agent(
    *, session: Path | None, model: str, peer: Path | None, n_threads: int | None, n_ctx: int, n_turns: int,
    n_system_lines: int, n_result_lines: int, n_peer_turns: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure first tokens in the session of an agent.

    Each request of the session repeats the conversation so far and begins with a line that changes. In the middle of
    the session, all processes of the servers are killed. The table has medians of the turns after the first: their new
    tokens, the tokens that the server computed, the time to the first token, and this time divided by the cost of the
    new tokens. With --peer, llama-server gets the same requests, turn by turn, and another llama-server gets them
    without the line that changes. SESSION is a recorded session: the JSON body of a chat completion request in each
    line.
    """
    from edgechat.bench.agent import format_table, run
    from edgechat.bench.agent_session import SessionSize, make_session, read_session
    from edgechat.catalogue.resolve import find_model
    from edgechat.hardware.cpu import count_usable_threads

    size = SessionSize(n_turns=n_turns, n_system_lines=n_system_lines, n_result_lines=n_result_lines)
    requests = read_session(session) if session is not None else make_session(size)
    status = StderrStatus(print_lines=True)
    report = run(
        str(find_model(model)), requests, peer, n_threads=n_threads or count_usable_threads(), n_ctx=n_ctx,
        kill_after=len(requests) // 2, n_peer_turns=n_peer_turns, on_progress=status.show,
    )  # fmt: skip
    status.clear()
    echo_json(report) if as_json else click.echo(format_table(report))
