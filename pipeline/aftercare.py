"""What a run does for its output beside the scenes.

A fault there costs no scene: it becomes a note of the run's report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from pipeline.errors import UsageError
from pipeline.leftovers import sweep
from pipeline.plan import ScenePlan
from pipeline.run_report import RunReport, SceneRow
from pipeline.stac.publication import bring_up_to_date, save_quicklook
from pipeline.storage import describe, join, open_filesystem, redact, write_atomic
from pipeline.store import STATE


class Aftercare:
    """The report's file, the catalogue, quicklooks, and what killed processes left behind."""

    def __init__(self, output: str, report: RunReport) -> None:
        self._output, self._report = output, report
        self._record = f"{STATE}/runs/{report.run_id}.json"

    def check_output(self) -> None:
        """Fail now, not after an hour, if the output cannot be written.

        Raises:
            UsageError: it cannot.
        """
        try:
            self._save_report()
        except Exception as error:  # whatever a store raises, it is of no use
            place = redact(self._output)
            raise UsageError(f"cannot write to output {place}: {describe(error)}") from error

    def end_report(self) -> None:
        """Write the report as it is now; what was published stays so if that fails."""
        try:
            self._save_report()
        except Exception as error:
            self._note(f"the run's report was not written: {describe(error)}")

    def catalogue(self, scenes: Sequence[ScenePlan], rows: Mapping[str, SceneRow]) -> None:
        """STAC items of what is published now."""
        there, gone = {}, []
        for scene in scenes:
            status = rows[scene.scene_id].status
            if status == "published" or scene.status in ("published", "kept"):
                there[scene.scene_id] = scene.fingerprint
            elif scene.status == "stale":  # perhaps taken away, and not published anew
                gone.append(scene.scene_id)
        try:
            self._report.notes += bring_up_to_date(self._output, there, gone).notes
        except Exception as error:
            self._note(f"the catalogue was not updated: {describe(error)}")

    def draw(self, scene_id: str) -> None:
        """The quicklook of a published scene."""
        try:
            save_quicklook(self._output, scene_id)
        except Exception as error:
            self._note(f"no quicklook of {scene_id}: {describe(error)}")

    def sweep(self) -> None:
        """Remove what killed processes had begun to write."""
        try:
            sweep(self._output, self._record)
        except OSError as error:
            self._note(f"files of killed processes were left: {describe(error)}")

    def _save_report(self) -> None:
        filesystem, inner = open_filesystem(join(self._output, self._record))
        write_atomic(filesystem, inner, json.dumps(asdict(self._report), indent=1).encode())

    def _note(self, note: str) -> None:
        self._report.notes.append(note)
