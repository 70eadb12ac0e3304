"""The verb serve: a model with its packs behind an OpenAI-compatible address on this machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Group, Parameter

from blockexpand.cli.chat import ALL_PACKS, Speaking
from blockexpand.cli.output import DEFAULTS, DONE, Common, Shared


@Parameter(name="*", group=Group("Address", sort_key=50))
@dataclass(frozen=True, kw_only=True)
class Address:
    """Where it listens, and for whom."""

    host: str = "127.0.0.1"
    """The address to listen on; other addresses than this machine's own let others in."""
    port: int = 8000
    """The port; 0 takes a free one."""
    key_variable: str | None = None
    """The environment variable that holds a key, which requests must then bear."""


HERE = Address()


def serve(
    model: str,
    *,
    name: str | None = None,
    speaking: Annotated[Speaking, Parameter(name="*")] = ALL_PACKS,
    address: Annotated[Address, Parameter(name="*")] = HERE,
    common: Shared = DEFAULTS,
) -> int:
    """Serve a model by OpenAI's API, and a page to talk to it beside its base: each pack has a name of its own.

    Parameters
    ----------
    model
        A model, expanded or not: a folder, a run, a GGUF file, or a hub id.
    name
        What the model is called; its folder's name unless given.
    """
    from blockexpand import serving
    from blockexpand.cli.main import secret
    from blockexpand.serving.conversation import keep
    from blockexpand.serving.http import require

    require("serve")
    key = secret(address.key_variable) if address.key_variable is not None else None
    service = serving.Service(
        host=address.host,
        port=address.port,
        name=name,
        routes=speaking.route == "auto",
        key=key,
        log=speaking.log,
    )
    if speaking.log is not None:
        keep(speaking.log, None)  # before a model is loaded
    speaker = serving.open_speaker(model, speaking.pack or (), dtype=speaking.dtype, device=speaking.device, plain=True)
    if service.is_open:
        print(
            f"blockexpand: anyone who reaches {service.host}:{service.port} may use the model; --key-variable NAME "
            "asks for a key",
            file=sys.stderr,
        )
    chats = bool(speaker.tokenizer.chat_template)
    serving.serve(speaker, service, lambda url, names: _tell(common, url, names, address.key_variable, chats))
    return DONE


def _tell(common: Common, url: str, names: list[str], key_variable: str | None, chats: bool) -> None:
    """Where it is, who is there, and a line to try it with, which bears the key and chats where that can be."""
    import json

    from blockexpand.records import dump_json

    if common.json:
        sys.stdout.write(dump_json({"url": url, "models": names}))
    elif not common.quiet:
        bearing = f' -H "Authorization: Bearer ${key_variable}"' if key_variable is not None else ""
        said: dict = {"messages": [{"role": "user", "content": "Hello"}]} if chats else {"prompt": "Hello"}
        asked = json.dumps({"model": names[0]} | said).replace("'", "\\u0027")
        print(f"{url} (Ctrl-C ends)\npage: {url.removesuffix('/v1')}/\nmodels: {', '.join(names)}")
        print(f"curl {url}/{'chat/' * chats}completions{bearing} -H 'Content-Type: application/json' -d '{asked}'")
    sys.stdout.flush()
