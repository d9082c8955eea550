"""What can be wrong with a scene or an option, and how it is said.

A `SceneError` sets one scene aside (quarantine) and the run goes on; a `UsageError` stops the run
before any work. Both carry one line that tells the operator what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Literal

ReasonCode = Literal[
    "unreadable",  # the bytes cannot be had (permission, vanished, transport)
    "truncated",  # the file ends before its header says so
    "missing-data",  # a header without its data file
    "bad-header",  # the header is wrong or contradicts the data
    "unsupported",  # a valid file that this version does not read
    "no-cube",  # no three-dimensional numeric array inside
    "ambiguous",  # several equally good readings; the operator must choose
    "too-few-bands",  # fewer usable bands than the model needs
    "band-mismatch",  # the bands are not those of the model and no policy allows another reading
    "no-valid-pixels",  # all nodata
    "not-finite",  # NaN or infinity beyond what nodata handling covers
    "duplicate-id",  # two sources map to one scene id
    "source-changed",  # the source is no longer the one that was planned
    "not-repeatable",  # what made a published scene is not what is here now
    "inconsistent",  # the degraded result is too far from the scene (--max-inconsistency)
    "seams",  # tiles do not meet: a border that is computed across differs (--seam-borders)
    "tile-failed",  # a tile failed in every attempt
    "output-failed",  # the output store refused the scene's arrays
]


class SceneError(Exception):
    """A scene that cannot be processed.

    Attributes:
        code: machine-readable reason, one of `ReasonCode`.
        message: one line for the operator; never holds credentials.
    """

    def __init__(self, code: ReasonCode, message: str) -> None:
        super().__init__(code, message)
        self.code: ReasonCode = code
        self.message = one_line(message)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class UsageError(Exception):
    """An option or an argument that cannot be used; raised before any work is done.

    Its text is one line that holds no credentials.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class StoreUnavailable(Exception):
    """A store gave no usable answer until the time for retries was over; one line.

    No `OSError`, because fsspec's walks leave out what raises one, and a listing that fails must
    not pass for a short one.
    """


def one_line(text: str) -> str:
    """Text on one line, with escapes for what a terminal would obey or not show."""
    joined = " ".join(text.split())
    if joined.isprintable():
        return joined
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in joined)


def closest(given: str, known: Iterable[str]) -> str:
    """What a message about an unknown name adds: the one that was perhaps meant, or nothing."""
    found = get_close_matches(given, list(known), 1)
    return f"; perhaps {found[0]} is meant" if found else ""
