"""Checkpoints: safetensors with the card inside; published .pth state dicts can be imported.

No file is ever unpickled into objects: a .pth that holds more than tensors is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import fsspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from model.card import Architecture, Card, CardError
from model.config import SSPSRConfig
from model.sspsr import SSPSR

_CARD_KEY = "card"
_BLOCK = "trunk.body.net."
_MAX_BYTES = 4 << 30
_SHIPPED = Path(__file__).parent / "checkpoints"
STARTER = "sspsr-cave31-x4"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do, on one line.

    What a terminal would obey, in names and errors that come from the file, is escaped.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def resolve(name_or_path: str | Path) -> str:
    """The path of a shipped checkpoint given by name (`starter` is one), or the path itself."""
    text = str(name_or_path)
    name = STARTER if text == "starter" else text
    candidate = _SHIPPED / f"{name}.safetensors"
    return str(candidate) if re.fullmatch(r"[\w.-]+", name) and candidate.is_file() else text


def weights_digest(net: SSPSR) -> str:
    """SHA-256 over names, shapes and values of all parameters: identifies the weights."""
    sha = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        sha.update(f"{name}{tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return sha.hexdigest()


def pack(net: SSPSR, card: Card) -> bytes:
    """Weights and card as the bytes of one safetensors file.

    Raises:
        CheckpointError: the card's architecture is not the network's.
    """
    if card.architecture.config() != net.config:
        raise CheckpointError("the card's architecture is not the network's config")
    tensors = {name: value.contiguous().cpu() for name, value in net.state_dict().items()}
    data: bytes = save_tensors(tensors, metadata={_CARD_KEY: card.model_dump_json()})
    return data


def save_checkpoint(path: str | Path, net: SSPSR, card: Card) -> None:
    """Write weights and card as one safetensors file, at a local path or an fsspec URL.

    Raises:
        CheckpointError: the card's architecture is not the network's.
    """
    data = pack(net, card)
    with fsspec.open(str(path), "wb") as file:
        file.write(data)


def load_checkpoint(path_or_url: str | Path) -> tuple[SSPSR, Card]:
    """Load a network and its card.

    Args:
        path_or_url: a .safetensors file written by `save_checkpoint` (or with a
            `<name>.card.json` beside it), a published .pth state dict, or the name of a
            shipped checkpoint.

    Returns:
        The network in eval mode on the CPU, and its card; `net.config` is the SSPSRConfig.

    Raises:
        CheckpointError: unreadable, foreign or dangerous content, in one line.
    """
    path = resolve(path_or_url)
    data = _read(path)
    if path.endswith((".pth", ".pt", ".bin")) or data[:2] == b"PK" or data[:1] == b"\x80":
        return import_published(data, name=Path(path).stem)
    return unpack(data, path)


def unpack(data: bytes, path: str) -> tuple[SSPSR, Card]:
    """The inverse of `pack`; `path` is for messages and for a card beside the file.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {_line(error)}") from None
    card = _card_of(path, data)
    try:
        return _build(card.architecture.config(), tensors), card
    except CheckpointError:
        raise
    except (ValueError, TypeError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path} holds no network of this product: {_line(error)}") from None


def _line(error: BaseException) -> str:
    """The start of an error's text on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read(path: str) -> bytes:
    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        names = ", ".join(shipped())
        raise CheckpointError(f"no checkpoint at {path}; shipped ones are: {names}") from None
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {_line(error)}") from None
    if len(data) > _MAX_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_BYTES >> 30} GiB")
    return data


def _card_of(path: str, data: bytes) -> Card:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    text = (header.get("__metadata__") or {}).get(_CARD_KEY)
    if text is None:
        beside = path.removesuffix(".safetensors") + ".card.json"
        try:
            text = _read(beside).decode()
        except (CheckpointError, UnicodeDecodeError):
            raise CheckpointError(
                f"{path} carries no card and there is none at {beside}; write one with "
                "model.save_checkpoint"
            ) from None
    try:
        return Card.parse(text)
    except CardError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _build(config: SSPSRConfig, tensors: dict[str, Tensor]) -> SSPSR:
    _check_size(config, tensors)
    with torch.device("meta"):  # shapes alone: the config of a foreign file may ask for terabytes
        net = SSPSR(config)
    expected = {name: value.shape for name, value in net.state_dict().items()}
    given = {name: value.shape for name, value in tensors.items()}
    wrong = sorted(
        name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)
    )
    if wrong:
        raise CheckpointError(
            f"the weights do not fit the architecture: {len(wrong)} parameter(s) are missing, "
            f"foreign or of another shape, first {wrong[0]!r}"
        )
    if any(not bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise CheckpointError("the weights hold NaN or infinity")
    net.to_empty(device="cpu").load_state_dict(tensors)
    return net.eval()


def _check_size(config: SSPSRConfig, tensors: dict[str, Tensor]) -> None:
    """A network has more parameters than blocks and branches; foreign numbers may be endless."""
    branches = 1 if config.shared_branch else _groups(config.bands, config)
    if config.blocks * branches > len(tensors):
        raise CheckpointError(
            f"the architecture has {config.blocks} block(s) in {branches} branch(es), which the "
            f"{len(tensors)} parameter(s) in the file cannot be"
        )


def _groups(bands: int, config: SSPSRConfig) -> int:
    return -(-(bands - config.group_overlap) // (config.group_size - config.group_overlap))


def import_published(
    data: bytes, *, name: str, group_overlap: int | None = None
) -> tuple[SSPSR, Card]:
    """Import a published .pth state dict.

    The architecture is read off the shapes. A shared branch does not show its groups' overlap;
    the published settings are assumed (2 for groups of 8, 1 for groups of 4) unless given.

    Args:
        data: the file's bytes.
        name: name for the card.
        group_overlap: bands shared by neighbouring groups.

    Raises:
        CheckpointError: a whole pickled module or optimiser, or other weights than SSPSR's.
    """
    try:
        _check_stored(data, name)
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a hostile file may raise anything in the unpickler
        if "Weights only load failed" in str(error) or isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{name} holds pickled Python objects (a whole module?), which could run code on "
                "loading, so it is refused; in the environment that wrote it, save "
                "`model.state_dict()` alone and import that"
            ) from None
        raise CheckpointError(f"{name} is not a readable .pth file: {_line(error)}") from None
    tensors = _tensors_of(content, name, len(data))
    config = _infer_config(tensors, name, group_overlap)
    card = Card(
        name=name[:200] or "unnamed",
        architecture=Architecture(**config.to_dict()),
        notes=["imported from a published .pth: wavelengths, training data and figures unknown"],
    )
    try:
        return _build(config, tensors), card
    except RuntimeError as error:
        raise CheckpointError(f"{name} holds no network of this product: {_line(error)}") from None


def _check_stored(data: bytes, name: str) -> None:
    """PyTorch never compresses its archives; one that is may unpack to any size."""
    if data[:2] != b"PK":
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > len(data):
        raise CheckpointError(f"{name} is compressed, which PyTorch never writes: refused")


def _tensors_of(content: object, name: str, size: int) -> dict[str, Tensor]:
    """The state dict, bare or under the usual keys, without DataParallel's prefix.

    Views may make few bytes look like large tensors: together they may not exceed the file.
    """
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{name} holds no state dict (a mapping of names to tensors)")
    if sum(value.numel() * value.element_size() for value in content.values()) > size:
        raise CheckpointError(f"{name} claims larger tensors than its {size} bytes can hold")
    return {str(key).removeprefix("module."): value.float() for key, value in content.items()}


def _infer_config(tensors: dict[str, Tensor], name: str, overlap: int | None) -> SSPSRConfig:
    shared = "branch.head.weight" in tensors
    prefix = "branch" if shared else "branch.0"
    try:
        features, group_size = tensors[f"{prefix}.head.weight"].shape[:2]
        bands = tensors["final.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(f"{name} is not an SSPSR state dict: no {error}") from None
    except (ValueError, IndexError):
        raise CheckpointError(f"{name} is not an SSPSR state dict: {prefix}.head.weight") from None
    doublings = sum(key.startswith(f"{prefix}.upsample.") for key in tensors) // 2
    blocks = {key[len(_BLOCK) :].partition(".")[0] for key in tensors if key.startswith(_BLOCK)}
    candidates = [overlap] if overlap is not None else _overlaps(tensors, bands, group_size, shared)
    try:
        return SSPSRConfig(
            bands=bands,
            scale=2 ** (doublings + 1),
            group_size=group_size,
            group_overlap=candidates[0],
            features=features,
            blocks=len(blocks),
            shared_branch=shared,
        )
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{name} is no SSPSR network of this product: {error}") from None


def _overlaps(tensors: dict[str, Tensor], bands: int, size: int, shared: bool) -> list[int]:
    """Overlaps that agree with the weights, published ones first."""
    published = [2, 1] if size >= 8 else [1, 2]
    order = [*(o for o in published if o < size), *(o for o in range(size) if o not in published)]
    if shared:
        return order
    groups = len({key.split(".")[1] for key in tensors if key.startswith("branch.")})
    return [o for o in order if -(-(bands - o) // (size - o)) == groups]
