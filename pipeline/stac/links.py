"""Where the links of a STAC document may lead: hrefs are untrusted.

A relative href is resolved against the document that states it (STAC 1.1, item-spec.md, "Relative
vs Absolute links") and must stay below the catalogue's own root. An absolute one may go to another
store, but never from a remote catalogue to this machine's files, and never through fsspec's chained
protocols.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from pipeline.errors import SceneError, UsageError
from pipeline.storage import is_local, open_filesystem, redact, unstrip

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_REMOTE = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "http", "https"})
_WEB = frozenset({"http", "https"})
_LONGEST = 4096
_SHOWN = 200
_CATALOGUE_FOLDER = "stac"


def scheme_of(url: str) -> str:
    """The protocol in lower case; `file` for a plain path."""
    found = _SCHEME.match(url)
    return found.group(1).lower() if found else "file"


@dataclass(frozen=True)
class Root:
    """The area that a catalogue's relative hrefs may name.

    Attributes:
        url: a folder without trailing slash: that of the document given or, where the document
            lies below a folder called `stac`, the one above that folder, because catalogues are
            kept so beside their data.
    """

    url: str

    @classmethod
    def of(cls, document: str) -> Root:
        folder = _parent(document)
        prefix, path = _split(folder)
        above, found, _ = f"{path}/".rpartition(f"/{_CATALOGUE_FOLDER}/")
        if found and (above or prefix):  # the top of a disk is no root
            return cls(prefix + above)
        return cls(folder)

    def resolve(self, href: object, base: str, *, page: bool = False) -> str:
        """The address that opens what `href`, found in the document `base`, points to.

        Args:
            href: as the document states it.
            base: address of the document.
            page: a `next` link: it must stay on its server, but may leave the folder.

        Raises:
            SceneError: `bad-header`, the href is malformed or leads where it must not.
        """
        if not isinstance(href, str) or not href.strip() or len(href) > _LONGEST:
            raise SceneError("bad-header", f"{redact(base)}: an href is empty or no text")
        if "::" in href or not href.isprintable():
            raise _refused(href, base, "it has a chained protocol or unprintable characters")
        if _SCHEME.match(href) or (href.startswith("/") and scheme_of(base) not in _WEB):
            return self._absolute(href, base)
        return self._relative(href, base, page)

    def _absolute(self, href: str, base: str) -> str:
        scheme, own = scheme_of(href), scheme_of(self.url)
        if scheme in ("file", "local") and own != "file":
            raise _refused(href, base, "a remote catalogue must not name local files")
        if scheme not in _REMOTE | {"file", own}:
            raise _refused(href, base, f"the protocol {scheme} is not among {', '.join(_known())}")
        if scheme != "file":
            return href
        return canonical(href)

    def _relative(self, href: str, base: str, page: bool) -> str:
        if scheme_of(base) in _WEB:
            resolved = urljoin(base, href)
            origins = {urlsplit(url)[:2] for url in (base, resolved)}
            if len(origins) > 1:
                raise _refused(href, base, "it leaves its server without saying so")
        else:
            prefix, path = _split(_parent(base))
            resolved = prefix + posixpath.normpath(posixpath.join(path or "/", href))
        if not page and not self._holds(resolved):
            raise _refused(href, base, f"it leaves the catalogue's root {redact(self.url)}")
        return resolved

    def _holds(self, url: str) -> bool:
        prefix, path = _split(url)
        own_prefix, own = _split(self.url)
        return prefix == own_prefix and posixpath.normpath(path).startswith(own.rstrip("/") + "/")


def printable(text: object) -> str:
    """Text of an untrusted document for a message: one line, no terminal controls, not endless."""
    short = " ".join(str(text).split())[:_SHOWN]
    return short if short.isprintable() else ascii(short)


def canonical(url: str) -> str:
    """One spelling for one object, to compare addresses and to see loops.

    Raises:
        SceneError: `bad-header`, no filesystem opens it.
    """
    if scheme_of(url) in _WEB:
        return url.partition("#")[0]
    try:
        filesystem, path = open_filesystem(url)
    except UsageError as error:
        raise SceneError("bad-header", str(error)) from error
    return unstrip(filesystem, posixpath.normpath(path) if is_local(filesystem) else path)


def _known() -> list[str]:
    return sorted({*_REMOTE, "file"})


def _refused(href: str, base: str, why: str) -> SceneError:
    shown = printable(redact(href))
    return SceneError("bad-header", f"{redact(base)}: the href {shown!r} is refused: {why}")


def _split(url: str) -> tuple[str, str]:
    """`scheme://host` (empty for a plain path) and the path, without query."""
    found = _SCHEME.match(url)
    if found is None:
        return "", url
    bare = url.partition("?")[0] if found.group(1).lower() in _WEB else url
    host, slash, path = bare[found.end() :].partition("/")
    return found.group(0) + host, slash + path


def _parent(url: str) -> str:
    prefix, path = _split(url)
    return prefix + posixpath.dirname(path).rstrip("/")
