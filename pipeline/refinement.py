"""What a run asks for beyond one pass of the network over each tile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refinement:
    """Options of a run, as `pipeline.settings` describes them.

    Attributes:
        conserve: change the result so that, degraded, it is the scene again.
        ensemble: the result is the mean over all turns of the tile.
        uncertainty: by how much the results of these turns differ is a result too.
    """

    conserve: bool = False
    ensemble: bool = False
    uncertainty: bool = False

    @property
    def turned(self) -> bool:
        """Whether the network sees each tile in all turns."""
        return self.ensemble or self.uncertainty


ONE_PASS = Refinement()
