"""A token of its own for a Ray cluster that a run starts (Ray's documentation, "Token auth").

Ray's processes listen on every address of the machine, and whoever reaches them may run code as
this user. With a token they answer only processes that know it: those that this one starts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def own_token() -> Iterator[None]:
    """A Ray that is started and stopped inside asks for a random token, which nothing stores.

    Where the operator has set one of Ray's own variables for this, these hold.
    """
    if any(name in os.environ for name in (_MODE, _TOKEN, _PATH)):
        yield
        return
    os.environ |= {_MODE: "token", _TOKEN: secrets.token_hex(32)}
    _refresh()
    try:
        yield
    finally:
        for name in (_MODE, _TOKEN):
            os.environ.pop(name, None)
        _refresh()


def _refresh() -> None:
    """Make this process's Ray read the variables again; it read them when it was imported."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:  # Ray before 2.52 knows no tokens
        return
    # In this order: a thread that still ends a session must not look for a token that is gone.
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
