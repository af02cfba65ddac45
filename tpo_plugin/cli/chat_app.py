"""`tpo app`: a page in the browser to chat with a trained run."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_plugin.cli.options import Host
from tpo_plugin.cli.serve import LOOPBACK, listen
from tpo_plugin.extras import needed
from tpo_plugin.serve.limits import Limits


def chat_app(
    run: Annotated[Path, typer.Argument(help="Directory of a run, or of a checkpoint of one: RUN/STAGE/checkpoint-N.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Records to take examples from; repeatable. By default the eval_data of the run's stages."),
    ] = None,
    address: Annotated[
        str, typer.Option(help="Where to listen; by default this machine alone can connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes one that is free.")] = 7860,
    host: Host = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest picture or video, in MiB.")] = Limits.max_body_mb,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = Limits.max_new_tokens,
) -> None:
    """Chat with a trained run about pictures and videos, in the browser: docs/app.md."""
    limits = Limits(max_body_mb=max_upload_mb, max_new_tokens=max_new_tokens)
    if address not in LOOPBACK:
        typer.echo(f"Warning: whoever reaches {address} may ask, and there is no password", err=True)
    with needed("app"):
        import uvicorn

        from tpo_plugin.app.page import application
    from tpo_plugin.app.examples import examples_of, sources_of
    from tpo_plugin.asking import load
    from tpo_plugin.training.run import read_run_config

    model, reading = load(run, host)
    config = read_run_config(run)
    sources = sources_of(config, data or [])
    examples = examples_of(sources, model.tpo, config)
    note = "" if sources else "This run names no held-out records (`eval_data`); `--data RECORDS.jsonl` shows examples."
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which removes temporary folders
    listening = listen(address, port)
    page = application(model, reading, run.resolve().name, limits, examples, note)
    settings = uvicorn.Config(page, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(settings)
    received: list[int] = []

    def stop(number: int, frame: Any) -> None:
        received.append(number)
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop)  # an exception there might come where it is caught, and be lost
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"{run.resolve().name} is at http://{shown}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])
    if received:
        sys.exit(128 + received[0])
