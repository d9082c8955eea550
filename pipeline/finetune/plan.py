"""What a fine-tuning will do, found out before it does anything."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from model import SSPSR, Card, CheckpointError, SSPSRConfig
from model.augmentation import Augmentation
from model.card import Architecture
from model.checkpoint import pack, weights_digest
from model.receptive_field import halo
from model.trainer import TrainingOptions
from model.transfer import transfer
from pipeline.catalog import scene_id
from pipeline.errors import SceneError, StoreUnavailable, UsageError
from pipeline.evaluation.degraded import degradation_of
from pipeline.finetune.archive import Archive, Sensor, survey
from pipeline.finetune.blocks import BlockReader, cut_blocks
from pipeline.finetune.job import Ending, Job, Part, Pixels
from pipeline.finetune.patches import PatchStream, Shape
from pipeline.finetune.settings import FinetuneSettings
from pipeline.finetune.split import Area, Reach, SceneSize, Split, make_split
from pipeline.finetune.validation import Validator
from pipeline.readers import scene_stem
from pipeline.registry import load_registered
from pipeline.storage import redact, without_secrets

# Settings that change how a training is done or what is done with it, not what comes out.
_INDECISIVE = {
    "source",
    "parent",
    "out",
    "name",
    "workers",
    "use_gpu",
    "report_seconds",
    "report_steps",
    "memory",
    "max_failures",
    "registry",
    "licence",
    "asset",
    "include",
    "exclude",
    "ray_address",
}
_LOOK_PATCHES = 4
_NOISE = 0.002  # of the network's range, at most: about that of a sensor's bright pixels


@dataclass(frozen=True)
class Parent:
    """The checkpoint to start from."""

    net: SSPSR
    card: Card
    digest: str


@dataclass(frozen=True)
class Plan:
    """All that a fine-tuning needs.

    Attributes:
        parent: where it starts.
        card: of the new model, without what only the training can tell.
        archive, split: of the source.
        job: for the processes, but for their number; see `job_for`.
        patches: as many as the training pixels would fill, side by side.
        name: of the new checkpoint.
        fingerprint: of all that determines it; the state of the training lies under this name.
    """

    settings: FinetuneSettings
    parent: Parent
    card: Card
    archive: Archive
    split: Split
    job: Job
    patches: float
    name: str
    fingerprint: str

    def job_for(self, processes: int, threads: int) -> Job:
        """The job for so many processes that train together; each step sees a batch of each."""
        ending, epochs = self.job.ending, self.settings.epochs
        if epochs is not None:
            epoch = max(1, round(self.patches / (self.settings.batch * processes)))
            ending = replace(ending, steps=epochs * epoch)
        return replace(self.job, ending=ending, threads=threads)

    @property
    def left_out(self) -> tuple[tuple[str, str], ...]:
        """Scenes that take no part, and why."""
        small = ((name, "too small to be divided") for name in self.split.too_small)
        return (*self.archive.rejected, *small)


def load_parent(settings: FinetuneSettings) -> Parent:
    """The checkpoint of `--from`.

    Raises:
        UsageError: it cannot be used.
    """
    try:
        net, card = load_registered(settings.parent)
    except (CheckpointError, StoreUnavailable) as error:
        raise UsageError(f"--from: {without_secrets(str(error))}") from error
    return Parent(net, card, weights_digest(net))


def make_plan(settings: FinetuneSettings) -> Plan:
    """Look at the source and decide; some pixels are read, nothing is written.

    Args:
        settings: of the command.

    Raises:
        UsageError: an option, the checkpoint or the source cannot be used.
    """
    parent = load_parent(settings)
    archive = survey(settings)
    settings = _decided(settings, archive.sensor, parent)
    config = _config(parent.net.config, archive.sensor, settings)
    kernel = degradation_of(settings.degradation, config.scale, settings.mtf)
    sizes = [SceneSize(m.ref.scene_id, m.height, m.width) for m in archive.members]
    reach = Reach(config.scale, halo(config), kernel.support)
    split = make_split(
        sizes, reach, settings.holdout, settings.seed, held_out=settings.holdout_scene
    )
    name = settings.name or _default_name(settings.source, config.scale)
    card = _card(name, config, archive.sensor, parent, settings)
    job = _job(settings, archive, split, config.scale)
    net = starting_net(parent, card, _look(job, card))
    job = replace(job, model=pack(net, card))
    fingerprint = _fingerprint(settings, archive, parent.digest)
    patches = sum(part.window.pixels for part in job.train) / (config.scale * job.pixels.patch) ** 2
    return Plan(settings, parent, card, archive, split, job, patches, name, fingerprint)


def _decided(settings: FinetuneSettings, sensor: Sensor, parent: Parent) -> FinetuneSettings:
    """The settings with `auto` bands decided."""
    if settings.bands != "auto":
        return settings
    windows = sensor.bands > parent.net.config.bands
    return settings.model_copy(update={"bands": "windows" if windows else "sensor"})


def _config(parent: SSPSRConfig, sensor: Sensor, settings: FinetuneSettings) -> SSPSRConfig:
    bands = parent.bands if settings.bands == "windows" else sensor.bands
    scale = settings.scale or parent.scale
    try:
        return replace(parent, bands=bands, scale=scale)
    except ValueError as error:
        raise UsageError(
            f"no model of --from's shape can be made for this sensor: {error}"
        ) from None


def _default_name(source: str, scale: int) -> str:
    stem = scene_stem(posixpath.normpath(redact(source)))
    return f"sspsr-{scene_id(stem)[:80]}-x{scale}"


def _card(
    name: str, config: SSPSRConfig, sensor: Sensor, parent: Parent, settings: FinetuneSettings
) -> Card:
    own = settings.bands == "sensor"
    wavelengths = sensor.wavelengths if own else parent.card.wavelengths
    fwhm = sensor.fwhm if own else parent.card.fwhm
    return Card(
        name=name,
        architecture=Architecture(**config.to_dict()),
        wavelengths=None if wavelengths is None else list(wavelengths),
        fwhm=None if fwhm is None else list(fwhm),
        normalisation=parent.card.normalisation,
        licence=settings.licence,
    )


def _job(
    settings: FinetuneSettings,
    archive: Archive,
    split: Split,
    scale: int,
) -> Job:
    """All but the network."""
    patch = min(settings.patch, max(_side(area) for area in split.train) // scale)
    train = [area for area in split.train if _side(area) >= scale * patch]
    where = {m.ref.scene_id: m.ref.uri for m in archive.members}
    pixels = Pixels(
        bands=settings.bands,
        scene_bands=archive.sensor.bands,
        normalise=settings.normalise,
        mask=tuple(sorted(set(settings.mask) - {"none"})),
        patch=patch,
        batch=settings.batch,
        degradation=settings.degradation,
        mtf=settings.mtf or 0.0,
        cache_bytes=int(settings.memory * 1e9 / 2),
        seed=settings.seed,
    )
    return Job(
        model=b"",
        train=_parts(train, where),
        validation=_parts(split.validation, where),
        pixels=pixels,
        options=TrainingOptions(
            learning_rate=settings.learning_rate, angle=settings.angle, seed=settings.seed
        ),
        augmentation=Augmentation(noise=_NOISE),
        ending=Ending(settings.seconds, None, settings.patience),
        threads=1,
        report_seconds=settings.report_seconds,
        report_steps=settings.report_steps,
    )


def starting_net(parent: Parent, card: Card, spectra: Tensor) -> SSPSR:
    """The parent's network for the bands and the scale of a new card.

    Args:
        parent: where it comes from.
        card: of the new model.
        spectra: `[samples, bands]` of the new bands, as the network sees them.
    """
    config = card.architecture.config()
    net = _rescaled(parent.net, config.scale)
    return transfer(net, config, parent.card.wavelengths, card.wavelengths, spectra)


def _rescaled(net: SSPSR, scale: int) -> SSPSR:
    """The network for another factor: only the branches' upsampling differs.

    What there is of it is taken; further doublings begin as the last one known.
    """
    if scale == net.config.scale:
        return net
    new = SSPSR(replace(net.config, scale=scale))
    old, state = net.state_dict(), new.state_dict()
    for name in state:
        source = name if name in old else re.sub(r"upsample\.\d+", "upsample.0", name)
        if source in old:
            state[name] = old[source]
    new.load_state_dict(state)
    return new.train(net.training)


def _side(area: Area) -> int:
    return min(area.window.shape)


def _parts(areas: Iterable[Area], where: dict[str, str]) -> tuple[Part, ...]:
    return tuple(Part(area.scene_id, where[area.scene_id], area.window) for area in areas)


def _fingerprint(settings: FinetuneSettings, archive: Archive, parent: str) -> str:
    facts = {
        "options": settings.model_dump(mode="json", exclude=_INDECISIVE),
        "scenes": [(m.ref.scene_id, m.ref.version) for m in archive.members],
        "parent": parent,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _look(job: Job, card: Card) -> Tensor:
    """Make one batch and the validation's pairs here, where a fault is one line.

    Returns:
        Spectra `[samples, bands]` of training pixels, as the network sees them.

    Raises:
        UsageError: the pixels cannot be trained on.
    """
    scale = card.architecture.scale
    side = scale * job.pixels.patch
    reader = BlockReader(card, job.pixels)
    shape = Shape(side, _LOOK_PATCHES)
    blocks = cut_blocks(job.train, side)
    stream = PatchStream(blocks, reader, shape, job.pixels.seed, most_blocks=_LOOK_PATCHES)
    try:
        high = stream.batch(0).high
        Validator(cut_blocks(job.validation, side), reader, job.pixels, scale)
    except SceneError as error:
        raise UsageError(f"the source cannot be trained on: {error}") from None
    finally:
        stream.close()
    return high.permute(0, 2, 3, 1).flatten(0, 2)
