"""`tpo serve`: a trained run behind HTTP, with OpenAI's chat completions."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Annotated

import typer

from tpo_plugin.cli.options import Host
from tpo_plugin.errors import TPOError
from tpo_plugin.extras import needed
from tpo_plugin.serve.limits import Limits

LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    run: Annotated[Path, typer.Argument(help="Directory of a trained run.")],
    address: Annotated[
        str, typer.Option(help="Where to listen; by default this machine alone can connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes one that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="Name of the model in requests; by default that of the folder.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TPO_API_KEY", help="Key that requests must bring; the variable is not seen by others."),
    ] = None,
    media: Annotated[Path | None, typer.Option(help="Folder whose images and videos a request may name.")] = None,
    host: Host = None,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Largest request, in MiB.")] = Limits.max_body_mb,
    max_media: Annotated[int, typer.Option(min=1, help="Most images and videos of a request.")] = Limits.max_media,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Most pixels of a request's images and of the frames taken of its videos.")
    ] = Limits.max_pixels,
    max_prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Longest question, in tokens, those of media counted.")
    ] = Limits.max_prompt_tokens,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer, in tokens, and that of a request that names none.")
    ] = Limits.max_new_tokens,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Longest time of a request, in seconds.")
    ] = Limits.timeout_s,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests at once, waiting or in progress; one more is refused.")
    ] = Limits.max_requests,
    max_batch: Annotated[int, typer.Option(min=1, help="Most questions of a batch.")] = Limits.max_batch,
    window: Annotated[
        float, typer.Option(min=0, help="How long a question waits for others to share a batch, in seconds.")
    ] = Limits.window_s,
    threads: Annotated[int, typer.Option(min=1, help="Batches in progress at once.")] = Limits.threads,
) -> None:
    """Serve a trained run over HTTP, as OpenAI's clients ask: docs/serve.md."""
    limits = Limits(
        max_body_mb=max_body_mb,
        max_media=max_media,
        max_pixels=max_pixels,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        timeout_s=timeout,
        max_requests=max_requests,
        max_batch=max_batch,
        window_s=window,
        threads=threads,
    )
    if media is not None and not media.is_dir():
        raise TPOError(f"--media {media}: no such folder")
    if api_key == "":
        raise TPOError("the API key is empty; expected one, or neither --api-key nor TPO_API_KEY")
    if address not in LOOPBACK and api_key is None:
        typer.echo(f"Warning: whoever reaches {address} may ask; give --api-key, or TPO_API_KEY", err=True)
    with needed():
        import uvicorn

        from tpo_plugin.serve.app import Server, application
    from tpo_plugin.asking import load

    model, reading = load(run, host)
    name = name or run.resolve().name
    server = Server(model, reading, name, limits.for_host(model), media_root=media, api_key=api_key)
    listening = listen(address, port)
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"{name} answers at http://{shown}:{listening.getsockname()[1]}/v1")
    config = uvicorn.Config(
        application(server), log_level="warning", access_log=False, timeout_graceful_shutdown=math.ceil(timeout)
    )  # no request takes longer
    uvicorn.Server(config).run(sockets=[listening])


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens. Raises `TPOError` where it cannot."""
    try:
        return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise TPOError(
            f"cannot listen at {address}:{port} ({error.strerror}); choose another --port or --address"
        ) from error
