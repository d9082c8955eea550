"""Make the report of an output: scene by scene, only what is new or has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from pipeline.accessor import good_bands
from pipeline.errors import SceneError, UsageError, one_line
from pipeline.inventory import Entry, scenes_of
from pipeline.report.aside import address_of, last_runs, set_aside
from pipeline.report.extent import Limits, choose_extent
from pipeline.report.facts import scene_facts, scene_row
from pipeline.report.folder import ReportFolder, site_file
from pipeline.report.origin import Origin, open_origin
from pipeline.report.packing import pack_json, script
from pipeline.report.pictures import quicklook_of, thumbnail
from pipeline.report.pixels import Pixels, read_low
from pipeline.storage import describe, join, redact
from pipeline.store import SceneStore

FOLDER = "report"
_SITE = ("overview.js", "scene.js", "style.css", "LICENSES.txt")
_FORM = 1  # of the pages' data; pages of another form are made again

Say = Callable[[str], None]


@dataclass
class Report:
    """What was done.

    Attributes:
        index: address of the first page.
        written: scenes whose pages were made.
        unchanged: scenes whose pages were there.
        removed: scenes that are not published any more.
        bytes: written.
        notes: scenes without a page, or without their source, and why.
    """

    index: str
    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    bytes: int = 0
    notes: list[str] = field(default_factory=list)


def make_report(
    output: str,
    to: str | None = None,
    scenes: Sequence[str] = (),
    limits: Limits | None = None,
    source: str | None = None,
    say: Say = lambda _: None,
) -> Report:
    """Write or renew the report of an output.

    Args:
        output: of the archive job.
        to: folder or bucket prefix of the report; default OUTPUT/report.
        scenes: ids whose pages are made; default all. The overview always has every scene.
        limits: of the pages.
        source: SOURCE of the run; default: the address that each scene records.
        say: is told of each scene.

    Raises:
        UsageError: the output is none, a scene is not published in it, or the report cannot be
            written.
    """
    entries = scenes_of(output)
    published = {entry.scene_id: entry for entry in entries if entry.status == "published"}
    if unknown := sorted(set(scenes) - published.keys()):
        raise UsageError(f"--scene: not published in {redact(output)}: {', '.join(unknown)}")
    maker = _Maker(output, ReportFolder(to or join(output, FOLDER)), limits or Limits(), source)
    maker.site()
    for scene_id in scenes or published:
        maker.scene(published[scene_id], say)
    maker.report.removed = maker.folder.drop_others(published)
    maker.overview(entries)
    return maker.report


class _Maker:
    """One making of a report."""

    def __init__(
        self, output: str, folder: ReportFolder, limits: Limits, source: str | None
    ) -> None:
        self._output, self._limits, self._source = output, limits, source
        self._address = address_of(output)
        self.folder = folder
        self.report = Report(folder.index)
        self._known = folder.rows()

    def site(self) -> None:
        """The files that all pages share."""
        self.folder.claim()
        for name in _SITE:
            self.folder.put(f"assets/{name}", site_file(name))

    def scene(self, entry: Entry, say: Say) -> None:
        """The page of a scene; one that cannot be made is a note."""
        try:
            made = self._scene(entry)
        except SceneError as error:
            self._failed(entry, str(error))
        except UsageError:
            raise
        except Exception as error:  # a foreign store may hold anything
            self._failed(entry, describe(error))
        else:
            (self.report.written if made else self.report.unchanged).append(entry.scene_id)
            say(f"{entry.scene_id}: {'written' if made else 'unchanged'}")

    def _failed(self, entry: Entry, reason: str) -> None:
        self._forget(entry.scene_id)
        self.report.notes.append(f"no page of {entry.scene_id}: {one_line(reason)}")

    def _forget(self, scene_id: str) -> None:
        self._known.pop(scene_id, None)
        self.folder.begin_scene(scene_id)

    def _scene(self, entry: Entry) -> bool:
        store = SceneStore(self._output, entry.scene_id)
        made = (store.published() or {}).get("sr_archive")
        made = made if isinstance(made, dict) else {}
        scale = made.get("scale")
        if not isinstance(scale, int) or isinstance(scale, bool) or not 1 <= scale <= 64:
            raise SceneError("bad-header", "its attributes have no record of how it was made")
        key, known = self._key(entry, made), self._known.get(entry.scene_id, {})
        same = known.get("key") == key
        if same and known.get("origin") == "":
            return False
        with xr.open_zarr(store.url) as result:
            origin = open_origin(result, made, entry.scene_id, scale, self._source)
            if same and known.get("origin") == origin.reason:
                self._note_origin(entry.scene_id, origin.reason)
                return False
            self._forget(entry.scene_id)
            row = scene_row(result, made, entry.scene_id)
            row["pictures"] = self._pictures(store)
            reason = self._page(result, made, origin, row, scale)
        self.folder.put_page("scene.html", f"scenes/{entry.scene_id}/index.html")
        self._note_origin(entry.scene_id, reason)
        self._known[entry.scene_id] = {"key": key, "origin": reason, "row": row}
        self.folder.end_scene(entry.scene_id, self._known[entry.scene_id])
        return True

    def _note_origin(self, scene_id: str, reason: str) -> None:
        if reason:
            self.report.notes.append(f"{scene_id} without its source: {reason}")

    def _key(self, entry: Entry, made: Mapping[str, Any]) -> str:
        """Changes whenever the page would, but for a source that comes or goes."""
        determining = {
            "form": _FORM,
            "page": hashlib.sha256(site_file("scene.html")).hexdigest(),
            "address": self._address,
            "fingerprint": entry.fingerprint,
            "published": str(made.get("published")),
            "limits": self._limits.to_dict(),
        }
        return hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()

    def _page(
        self,
        result: xr.Dataset,
        made: Mapping[str, Any],
        origin: Origin,
        row: dict[str, Any],
        scale: int,
    ) -> str:
        """The data of a scene's page; returns why its source is not shown, or nothing."""
        good = good_bands(result)
        wavelengths = result["wavelength"].values if "wavelength" in result.coords else None
        shape = (result.sizes["band"], result.sizes["y"], result.sizes["x"])
        extent = choose_extent(shape, scale, good, wavelengths, self._limits)
        low, reason = read_low(origin, extent)
        pixels = Pixels.read(result, low, extent, scale)
        scene_id = str(row["id"])
        for part in (pixels.images(), pixels.spectra()):
            for name, data in part:
                self.folder.put(f"scenes/{scene_id}/{name}", data)
        address = join(self._address, f"{scene_id}.zarr")
        facts = {
            "row": row,
            "pixels": pixels.facts(),
            "origin": reason,
            **scene_facts(result, made, address),
        }
        self.folder.put(f"scenes/{scene_id}/scene.js", script("scene", facts))
        return reason

    def _pictures(self, store: SceneStore) -> bool:
        try:
            quicklook = quicklook_of(store)
            small = thumbnail(quicklook)
        except Exception as error:  # a picture is no reason to lose the page
            self.report.notes.append(f"no picture of {store.scene_id}: {describe(error)}")
            return False
        self.folder.put(f"scenes/{store.scene_id}/quicklook.png", quicklook)
        self.folder.put(f"scenes/{store.scene_id}/thumbnail.webp", small)
        return True

    def overview(self, entries: Sequence[Entry]) -> None:
        """The first page, of all scenes that have one; written last."""
        published = [entry.scene_id for entry in entries if entry.status == "published"]
        facts = {
            "output": self._address,
            "scenes": [self._row(scene_id) for scene_id in published],
            "aside": set_aside(self._output, self._address, entries),
            "runs": last_runs(self._output),
        }
        self.folder.put("overview-data.js", script("overview", pack_json(facts)))
        self.folder.put_page("index.html", "index.html")
        self.report.bytes = self.folder.written

    def _row(self, scene_id: str) -> dict[str, Any]:
        known = self._known.get(scene_id, {}).get("row")
        return {**known, "id": scene_id} if isinstance(known, dict) else {"id": scene_id}
