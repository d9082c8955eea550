"""The shape of an SSPSR network."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# Names of the published constructor (github.com/junjun-jiang/SSPSR) for the fields below.
_PUBLISHED_NAMES = {
    "n_colors": "bands",
    "n_scale": "scale",
    "n_subs": "group_size",
    "n_ovls": "group_overlap",
    "n_feats": "features",
    "n_blocks": "blocks",
    "res_scale": "residual_scale",
    "use_share": "shared_branch",
}


@dataclass(frozen=True)
class SSPSRConfig:
    """All that determines the parameters of an SSPSR network (arXiv 2005.08752, section III).

    Attributes:
        bands: spectral bands of input and output.
        scale: upsampling factor; the branches upsample by scale / 2, the trunk by 2.
        group_size: bands of one sub-band group.
        group_overlap: bands that neighbouring groups share.
        features: feature maps inside branches and trunk.
        blocks: spatial-spectral blocks in each branch and in the trunk.
        residual_scale: factor on every residual before it is added.
        shared_branch: all groups use one set of branch weights.

    Raises:
        ValueError: a combination that the architecture does not allow.
    """

    bands: int
    scale: int
    group_size: int = 8
    group_overlap: int = 2
    features: int = 256
    blocks: int = 3
    residual_scale: float = 0.1
    shared_branch: bool = True

    def __post_init__(self) -> None:
        if self.scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8, not {self.scale}")
        if not 0 <= self.group_overlap < self.group_size:
            raise ValueError(
                f"group_overlap must lie in 0..{self.group_size - 1}, not {self.group_overlap}"
            )
        if self.bands < self.group_size:
            raise ValueError(f"{self.bands} bands are fewer than one group of {self.group_size}")
        if self.features < 16:
            raise ValueError(f"features must be at least 16, not {self.features}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")

    @property
    def group_starts(self) -> tuple[int, ...]:
        """First band of each group; the last group is moved back to end at the last band."""
        step = self.group_size - self.group_overlap
        count = -(-(self.bands - self.group_overlap) // step)
        last = self.bands - self.group_size
        return tuple(min(group * step, last) for group in range(count))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_published(cls, values: dict[str, Any]) -> SSPSRConfig:
        """From the argument names of the published constructor (`n_colors`, `n_subs`, ...)."""
        unknown = sorted(set(values) - set(_PUBLISHED_NAMES))
        if unknown:
            raise ValueError(f"unknown published option(s): {', '.join(unknown)}")
        return cls(**{_PUBLISHED_NAMES[name]: value for name, value in values.items()})
