"""What MkDocs calls while it builds the site (`mkdocs.yml`, `make docs`).

Pages that are made of the code join those of `docs/`; notebooks become pages as they were executed;
a site that would ask another host for anything is refused.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from infra.pages import pages

_ASKING = re.compile(r"<(?:script|img|iframe|source|embed)\b[^>]*\ssrc=[\"']?(?:https?:)?//[^>]*>")
_LINKED = re.compile(r"<link\b[^>]*>")
_ADDRESS = re.compile(r"\shref=[\"']?(?:https?:)?//")
# The theme fetches its diagrams' program from elsewhere as soon as a page has one.
_DIAGRAM = re.compile(r"<[^>]*\sclass=[\"']?mermaid\b[^>]*>")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that no file of `docs/` holds."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        page = Path(notebook.src_uri).with_suffix(".md")
        stored = Path(notebook.abs_src_path).read_text("utf-8")
        text, pictures = notebook_page(stored, page.stem)
        files.append(File.generated(config, page.as_posix(), content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, page.with_name(name).as_posix(), content=data))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to a notebook, which the repository's host shows, leads to its page in the site."""
    return re.sub(r"(\]\([^)\s:]+)\.ipynb\b", r"\1.md", markdown)


def on_post_build(config: Any) -> None:
    """Refuse a site that asks another host for a script, a style, a font or a picture.

    Raises:
        PluginError: the first such page and what it asks for.
    """
    from mkdocs.exceptions import PluginError

    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        for request in foreign_requests(page.read_text("utf-8")):
            raise PluginError(f"{page}: asks another host: {request}")


def foreign_requests(html: str) -> list[str]:
    """The tags of a page for which a browser would ask another host."""
    linked = [tag for tag in _LINKED.findall(html) if _ADDRESS.search(tag)]
    # These are for search engines; no browser follows them by itself.
    linked = [tag for tag in linked if not re.search(r"rel=[\"']?(canonical|prev|next)", tag)]
    return [*_ASKING.findall(html), *linked, *_DIAGRAM.findall(html)]


def notebook_page(text: str, stem: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, with the outputs it was stored with, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source:
            parts.append(f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Output of the cell above]({name})")
            elif shown := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{shown}\n```")
    return "\n\n".join(parts) + "\n", pictures
