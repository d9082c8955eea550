"""Copies of what a scene cannot be read or repaired without, in one object of its state.

Tiles can be computed again; metadata, coordinates, constants and the ledger cannot, or not alone. A
zip file (APPNOTE.TXT 6.3.x, deflate) keeps them: it is small, and its own CRC-32 tells whether a
copy is still what was put in.

    scene/<key>     every object of the scene that no tile writes
    state/<name>    scene.json, calibration.safetensors, ledger.json
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import SceneError

_LARGEST = 1 << 30  # bytes in all; a file that promises more is not ours
_FOLDERS = ("scene", "state")


@dataclass(frozen=True)
class Copies:
    """Bytes by key below the scene, and by name in its state."""

    scene: Mapping[str, bytes] = field(default_factory=dict)
    state: Mapping[str, bytes] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The same content gives the same bytes."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for folder, members in zip(_FOLDERS, (self.scene, self.state), strict=True):
                for name in sorted(members):
                    entry = zipfile.ZipInfo(f"{folder}/{name}")  # its time is a constant
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    archive.writestr(entry, members[name])
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Copies:
        """What `to_bytes` packed.

        Raises:
            SceneError: the file is damaged, or it was not written by this product.
        """
        try:
            found = _members(data)
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:100]
            raise SceneError("unreadable", f"the copies are damaged: {reason}") from error
        return cls(found["scene"], found["state"])


def _members(data: bytes) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {folder: {} for folder in _FOLDERS}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > _LARGEST:
            raise ValueError("it promises more than it can hold")
        for entry in entries:
            folder, _, name = entry.filename.partition("/")
            # Keys are joined to the scene's address when they are restored.
            if folder not in found or not _is_key(name):
                raise ValueError(f"a foreign member {entry.filename[:60]!r}")
            found[folder][name] = archive.read(entry)
    return found


def _is_key(name: str) -> bool:
    return "\\" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
