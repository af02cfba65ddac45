"""`tpo retention`: what a run kept of its host's ordinary answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tpo_plugin.cli.options import Confine, Host


def retention(
    run: Annotated[Path, typer.Argument(help="Directory of a trained run.")],
    data: Annotated[
        Path, typer.Option(help="Conversations, JSON Lines or LLaVA's JSON; those with tasks are left out.")
    ],
    media: Annotated[Path | None, typer.Option(help="Folder that the paths of images and videos start from.")] = None,
    confine: Confine = False,
    host: Host = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many conversations only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a run with its host on ordinary conversations.

    Right after applying TPO the two must be equal bit for bit; after training, the table says how often the likeliest
    next token of the answers is still the host's, and their perplexity, with LoRA on and off.
    """
    from tpo_plugin.training.retention import retention as compare

    result = compare(run, data, media_root=media, confine=confine, host=host, limit=limit)
    typer.echo(json.dumps(result, indent=2) if as_json else _as_text(result))


def _as_text(result: dict[str, Any]) -> str:
    applied = result["applied"]
    equal = "equal bit for bit" if applied["exactly_equal"] else f"differs by {applied['largest_difference']:.1e}"
    lines = [
        f"{result['conversations']} conversations, {result['tokens']} tokens of answers "
        f"({result['with_tasks']} conversations with tasks left out)",
        f"right after applying: {equal}",
        f"host: perplexity {result['host']['perplexity']:.3f}",
    ]
    for name, words in (("lora_on", "run"), ("lora_off", "run, LoRA off")):
        if name in result:
            numbers = result[name]
            lines.append(f"{words}: perplexity {numbers['perplexity']:.3f}, agreement {numbers['agreement']:.1%}")
    return "\n".join(lines)
