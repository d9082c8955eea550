"""Which asset of a STAC item is the scene.

The one that the operator names; else of those with role `data` (of all but pictures and metadata
where none has it) the best format in the order of `_FORMATS`. Two equally good ones are ambiguous
unless one of them has the key `data`. Media types after STAC's best practices ("Common Media
Types") and what archives are seen to write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import SceneError
from pipeline.stac.links import printable
from pipeline.storage import redact

# Best first: name of the format, media types, suffixes.
_FORMATS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "zarr",
        ("application/vnd.zarr", "application/vnd+zarr", "application/x-zarr", "application/zarr"),
        (".zarr",),
    ),
    ("geotiff", ("image/tiff", "image/vnd.stac.geotiff", "image/x.geotiff"), (".tif", ".tiff")),
    ("netcdf", ("application/netcdf", "application/x-netcdf"), (".nc", ".nc4")),
    ("hdf5", ("application/x-hdf5", "application/x-hdf", "application/hdf5"), (".h5", ".he5")),
    ("envi", ("application/x-envi",), (".hdr", ".img", ".bsq", ".bil", ".bip", ".dat", ".raw")),
    ("matlab", ("application/x-matlab-data",), (".mat",)),
    ("npz", (), (".npz",)),
)
_NO_DATA = frozenset({"thumbnail", "overview", "metadata", "visual"})
_PICTURES = ("image/png", "image/jpeg", "image/webp", "text/", "application/json")


def choose_asset(
    item: Mapping[str, Any], base: str, asset: str | None
) -> tuple[str, str, dict[str, Any]]:
    """Key, format and fields of the asset that is the scene.

    Args:
        item: its JSON; whatever its `assets` hold is bearable.
        base: the document it was found in, for messages.
        asset: the key the operator asks for.

    Raises:
        SceneError: `missing-data`, `unsupported` or `ambiguous`.
    """
    where = f"{redact(base)}: item {printable(item.get('id'))!r}"
    stated = item.get("assets")
    assets = {
        str(key): entry
        for key, entry in (stated.items() if isinstance(stated, dict) else ())
        if isinstance(entry, dict) and entry.get("href")
    }
    if asset is not None:
        if asset not in assets:
            raise SceneError("missing-data", f"{where} has no asset {asset!r}, but {_some(assets)}")
        return asset, _format(assets[asset]) or _unknown(where, asset), assets[asset]
    candidates = [key for key in assets if "data" in _roles(assets[key])] or [
        key for key in assets if not _is_extra(assets[key])
    ]
    if not candidates:
        raise SceneError("missing-data", f"{where} has no data asset, but {_some(assets)}")
    ranked = {key: kind for key in candidates if (kind := _format(assets[key]))}
    if not ranked:
        _unknown(where, _some(candidates))
    order = [name for name, _, _ in _FORMATS]
    best = min(ranked.values(), key=order.index)
    equals = [key for key, kind in ranked.items() if kind == best]
    if len(equals) > 1 and "data" not in equals:
        what = f"{where} has several data assets ({_some(equals)}): choose one with --asset"
        raise SceneError("ambiguous", what)
    key = equals[0] if len(equals) == 1 else "data"
    return key, best, assets[key]


def _unknown(where: str, what: str) -> str:
    raise SceneError("unsupported", f"{where}: the asset {what} is of no format that is read")


def _some(names: Iterable[str]) -> str:
    listed = sorted(printable(name) for name in names)
    return (", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")) or "none at all"


def _roles(asset: Mapping[str, Any]) -> list[Any]:
    roles = asset.get("roles")
    return roles if isinstance(roles, list) else []


def _is_extra(asset: Mapping[str, Any]) -> bool:
    kind = str(asset.get("type") or "")
    return bool(_NO_DATA & {str(role) for role in _roles(asset)}) or kind.startswith(_PICTURES)


def _format(asset: Mapping[str, Any]) -> str | None:
    """By media type, else by suffix."""
    kind = str(asset.get("type") or "").partition(";")[0].strip().lower()
    path = str(asset["href"]).partition("?")[0].rstrip("/").lower()
    for name, types, _ in _FORMATS:
        if kind in types:
            return name
    return next((name for name, _, suffixes in _FORMATS if path.endswith(suffixes)), None)
