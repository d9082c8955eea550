"""A small cube super-resolved in memory, by the code and with the numbers of the archive job."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model import inference
from model.checkpoint import unpack
from pipeline.arrays import VARIABLE
from pipeline.encoding import ValueEncoding
from pipeline.errors import UsageError
from pipeline.footprint import worker_bytes
from pipeline.grid import TileGrid
from pipeline.handmade import DIMS, as_scene, check_cube
from pipeline.ledger import TileRecord
from pipeline.masks import QUALITY
from pipeline.preparation import constants_of, encoding_of, read_as_asked
from pipeline.product import output_levels
from pipeline.provenance import making
from pipeline.quality import scene_figures
from pipeline.registry import usable_model
from pipeline.resolving import scene_engines
from pipeline.scene_job import Model, OutputOptions
from pipeline.settings import (
    Attention,
    Bands,
    Mask,
    Normalise,
    Outside,
    Precision,
    RunSettings,
)
from pipeline.spread import SPREAD
from pipeline.swath import POSITIONS
from pipeline.tile import (
    SceneContext,
    compute_tile,
    read_tile,
    record_of,
    stored_arrays,
)

_BYTES = 12  # of an HR value at most: as stored, as decoded
_SPREAD_BYTES = 4
_LIMITS = (  # of a container, by version of control groups
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def super_resolve(
    scene: xr.Dataset,
    model: str | Path = "starter",
    *,
    tile: int = 64,
    precision: Precision = "auto",
    attention: Attention = "scene",
    bands: Bands = "auto",
    outside: Outside = "fill",
    tolerance: float | None = None,
    normalise: Normalise = "auto",
    mask: Mask | Sequence[Mask] = ("defective",),
    conserve: bool = False,
    ensemble: bool = False,
    uncertainty: bool = False,
    dtype: Literal["source", "float32"] = "source",
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Super-resolve a scene that fits into memory.

    The result equals what `xarray.open_zarr` reads of the archive job's output with the same
    options, value for value, if processor, precision and number of threads are the same
    (`torch.set_num_threads`), else to float rounding; only what a run alone knows is absent. Values
    are those that would be stored: rounded to the scene's integer type where its encoding states
    one; `dtype="float32"` leaves them as computed.

    Args:
        scene: `reflectance` (band, y, x), physical, NaN in gaps, in memory or lazy, as
            `pipeline.open_scene` returns it or made by hand; coordinates `wavelength` (nm) on band,
            and optionally `fwhm` (nm), `good_band`, `x`, `y` and `spatial_ref`, or 2-D `lat` and
            `lon` in degrees. What is absent stays absent. Of a part of a scene, `x` and `y` tell
            where it lies.
        model: name of a shipped checkpoint, path or URL of one, or `registry:FOLDER`.
        tile: LR pixels along a side of what the network sees at once; smaller takes less memory.
        precision, attention, bands, outside, tolerance, normalise, mask, conserve, ensemble,
            uncertainty, dtype: as the options of `sr-archive run`.
        device: where the network runs; None: a GPU if there is one.

    Returns:
        `reflectance` (band, scale * y, scale * x) and `quality` (y, x), with `uncertainty`
        also `reflectance_spread`, with coordinates on the finer grid and a record of how they were
        made in the attribute `sr_archive`.

    Raises:
        UsageError: an option or the model cannot be used, or the Dataset is no scene.
        SceneError: the scene cannot be super-resolved with these options.
        ValueError: the result would not fit into memory; the archive job does it in parts.
    """
    given = {name: value for name, value in locals().items() if name not in ("scene", "device")}
    masks = [mask] if isinstance(mask, str) else list(mask) or ["none"]
    settings = RunSettings.from_options(
        given | {"model": str(model), "mask": masks, "source": "-", "output": "-"}
    )
    options, on = OutputOptions.of(settings), _device(device)
    check_cube(scene)
    loaded = usable_model(settings.model, "model")
    _check_memory(scene, loaded, options)
    scene = read_as_asked(as_scene(scene, options.tile), loaded.card, options)
    return _result(_context(scene, loaded, options, on), loaded, options)


def _check_memory(scene: xr.Dataset, model: Model, options: OutputOptions) -> None:
    config = model.card.architecture.config()
    bands, rows, columns = (scene.sizes[name] for name in DIMS)
    if options.bands == "resample":
        bands = config.bands
    each = _BYTES + (_SPREAD_BYTES if options.uncertainty else 0)
    needed = each * bands * rows * columns * config.scale**2 + worker_bytes(
        config,
        len(model.data) // 4,
        options.tile,
        bands,
        model.halo,
        options.refinement,
        at_once=1,
    )
    if needed > (there := _available_memory()):
        raise ValueError(
            f"the result takes about {needed / 2**30:.1f} GiB and {there / 2**30:.1f} are there: "
            "super-resolve a part (.isel(x=..., y=...)), or in parts with `sr-archive run`"
        )


def _available_memory() -> int:
    """Bytes that this process may take without being swapped out or ended."""
    found = [1 << 62]
    for path in (Path("/proc/meminfo"), *_LIMITS):
        with suppress(OSError, ValueError):  # not Linux, no such group, no limit
            text = path.read_text()
            [free] = re.findall(r"MemAvailable:\s*(\d+) kB", text) or [""]
            found.append(1024 * int(free) if free else int(text))
    return min(found)


def _device(given: str | torch.device | None) -> torch.device:
    if given is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"device: {given!r} is neither cpu nor cuda nor cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device: there is no {device} here; {torch.cuda.device_count()} GPUs are")
    return device


def _context(
    scene: xr.Dataset, model: Model, options: OutputOptions, device: torch.device
) -> SceneContext:
    net, card = unpack(model.data, "the model")
    engine = inference.compile(net.to(device), precision=options.precision)
    calibration = constants_of(scene, engine, card, options)
    encoding = encoding_of(scene, calibration, options)
    grid = TileGrid(scene.sizes["y"], scene.sizes["x"], options.tile, card.architecture.scale)
    engines = scene_engines(engine, calibration)
    return SceneContext(scene, grid, calibration, encoding, engines, refinement=options.refinement)


def _result(context: SceneContext, model: Model, options: OutputOptions) -> xr.Dataset:
    """All tiles, one after the other, in the Dataset that the job would have written."""
    levels = output_levels(
        context.scene, context.grid, context.calibration, context.encoding, context.refinement
    )
    template = levels[""].dataset
    arrays = {
        name: np.empty(
            variable.shape, context.encoding.dtype if name == VARIABLE else variable.dtype
        )
        for name, variable in template.variables.items()
        if name in (VARIABLE, QUALITY, SPREAD, *POSITIONS) and variable.chunks is not None
    }
    records: dict[str, TileRecord] = {}
    for tile in context.grid:
        content = compute_tile(context, read_tile(context, tile))
        window = context.grid.core(tile).scaled(context.grid.scale)
        values, beside = stored_arrays(context, content)
        arrays[VARIABLE][..., *window.slices] = values[...]
        for name, block in beside.items():
            arrays[name][..., *window.slices] = block
        records[tile.key] = record_of(context, tile, content, values.valid)
    consistency = scene_figures(records, context.calibration, context.grid.scale)
    facts = making(model, options, context.calibration, consistency)
    return _decoded(template, arrays, context.encoding).assign_attrs(sr_archive=facts)


def _decoded(
    template: xr.Dataset, arrays: Mapping[str, NDArray[Any]], encoding: ValueEncoding
) -> xr.Dataset:
    """As xarray decodes what is stored, so that no digit differs from a published scene."""
    stored = template.copy(data=None)
    for name, values in arrays.items():
        variable = template.variables[name]
        attributes = dict(variable.attrs)
        if name == VARIABLE:
            facts = {
                k: v for k, v in encoding.to_xarray().items() if k != "dtype" and v is not None
            }
            attributes |= facts
        stored[name] = xr.Variable(variable.dims, values, attributes)
    decoded: xr.Dataset = xr.decode_cf(stored, decode_coords="all")
    # Else xarray decodes at each access, and lets nobody change values.
    return decoded.load()
