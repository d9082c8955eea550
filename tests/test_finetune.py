"""Fine-tuning without Ray: options, split, patches, state, records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model import SSPSR, Card, SSPSRConfig
from model.augmentation import NONE, Augmentation
from model.card import Architecture
from model.checkpoint import unpack
from model.degradation import bicubic
from model.pairs import make_pair
from model.receptive_field import halo
from model.trainer import Trainer
from pipeline.errors import SceneError, UsageError
from pipeline.finetune.blocks import Block, BlockReader, block_bytes, cut_blocks
from pipeline.finetune.job import Ending, Part, Pixels
from pipeline.finetune.patches import PatchStream, Seat, Shape
from pipeline.finetune.plan import make_plan
from pipeline.finetune.records import curves
from pipeline.finetune.settings import FinetuneSettings
from pipeline.finetune.split import (
    SMALLEST,
    Area,
    Reach,
    SceneSize,
    Split,
    guard_pixels,
    make_split,
)
from pipeline.finetune.state import Course, Validation, load_state, save_state
from pipeline.grid import Window
from tests.archives import NODATA, SCALE_FACTOR, counts
from tests.scenes import wavelengths, write_geotiff, write_zarr

BANDS = 9
ALONE = Seat()
REACH = Reach(4, halo(SSPSRConfig(31, 4, features=64)), bicubic(4).support)


def options(**given: object) -> FinetuneSettings:
    return FinetuneSettings.from_options({"source": "a", "out": "b"} | given)


def card(bands: int = BANDS, with_wavelengths: bool = True) -> Card:
    config = SSPSRConfig(bands, 4, group_size=4, group_overlap=1, features=16, blocks=1)
    centres = wavelengths(bands).tolist() if with_wavelengths else None
    architecture = Architecture(**config.to_dict())
    return Card(name="test", architecture=architecture, wavelengths=centres)


def pixels(cache_bytes: int = 1 << 26, **given: object) -> Pixels:
    values = {"bands": "sensor", "scene_bands": BANDS, "normalise": "auto", "mask": ()}
    values |= {"patch": 4, "batch": 3, "degradation": "bicubic", "mtf": 0.3, "seed": 5}
    return Pixels(**values | {"cache_bytes": cache_bytes} | given)  # type: ignore[arg-type]


def whole(path: str, rows: int, columns: int) -> Part:
    return Part(Path(path).stem, path, Window(0, rows, 0, columns))


# Options


@pytest.mark.parametrize(
    ("text", "seconds"), [("600s", 600.0), ("30m", 1800.0), ("2h", 7200.0), ("90", 90.0)]
)
def test_budgets_are_said_in_seconds_minutes_or_hours(text: str, seconds: float) -> None:
    assert options(budget=text).seconds == seconds


def test_without_a_budget_or_epochs_half_an_hour_is_trained() -> None:
    assert options().seconds == 1800.0
    assert options(epochs=3).seconds is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": "soon"}, r"^budget: "),
        ({"budget": "-5m"}, r"^budget: "),
        ({"budget": "10m", "epochs": 2}, "not both"),
        ({"mtf": 0.3}, "add --degradation mtf"),
        ({"degradation": "mtf"}, "--mtf"),
        ({"name": "../up"}, r"^name: "),
        ({"parent": " "}, r"^from: must|^from: "),
        ({"scale": 3}, r"^scale: "),
    ],
)
def test_a_bad_option_is_one_line(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        options(**given)
    assert "\n" not in str(caught.value)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UsageError, match=r"^out is needed: .* SR_ARCHIVE_FINETUNE_OUT"):
        FinetuneSettings.from_options({"source": "a"})


# Split


def members(split: Split) -> list[Area]:
    return [*split.train, *split.validation, *split.test]


sides = st.integers(min_value=3, max_value=700)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=7),
    st.sampled_from((2, 4, 8)),
    st.floats(0.05, 0.5),
    st.integers(0, 1000),
)
def test_no_pixel_has_two_roles_and_blocks_keep_their_distance(
    sizes: list[tuple[int, int]], scale: int, share: float, seed: int
) -> None:
    scenes = [SceneSize(f"s{place}", *size) for place, size in enumerate(sizes)]
    reach = Reach(scale, 13, 2)
    try:
        split = make_split(scenes, reach, share, seed)
    except UsageError as error:
        assert "no scene is large enough" in str(error)
        return
    assert split == make_split(list(reversed(scenes)), reach, share, seed)
    counted = {scene.scene_id: np.zeros((scene.height, scene.width), int) for scene in scenes}
    least = SMALLEST * scale
    for area in dict.fromkeys(members(split)):
        assert min(area.window.shape) >= least
        counted[area.scene_id][area.window.slices] += 1
    assert max(count.max() for count in counted.values()) == 1
    roles = (split.train, split.validation, split.test)
    if split.by == "blocks":
        assert split.guard >= scale * reach.support
        for one in split.train:
            for other in (*split.validation, *split.test):
                apart = distance(one.window, other.window)
                assert one.scene_id != other.scene_id or apart >= split.guard
    else:
        names = [{area.scene_id for area in role} for role in roles]
        assert not names[0] & (names[1] | names[2])


def distance(one: Window, other: Window) -> int:
    """Pixels between two rectangles, along the axis on which they are apart."""
    down = max(one.top, other.top) - min(one.bottom, other.bottom)
    across = max(one.left, other.left) - min(one.right, other.right)
    return max(down, across)


def test_the_guard_is_halo_and_support_where_there_is_room() -> None:
    assert guard_pixels(10_000, REACH) == 4 * (REACH.halo + REACH.support)
    assert guard_pixels(96, REACH) == 12
    assert guard_pixels(32, REACH) == 4 * REACH.support


@settings(max_examples=25, deadline=None)
@given(st.integers(24, 90), st.integers(40, 120), st.integers(0, 99))
def test_no_pixel_outside_reaches_a_training_pair(rows: int, columns: int, seed: int) -> None:
    """Pairs of a scene and of one that differs everywhere outside of the training area agree."""
    split = make_split([SceneSize("s", rows, columns)], REACH, 0.25, seed)
    [area] = split.train
    random = np.random.default_rng(seed)
    scene = random.random((2, rows, columns), dtype=np.float32)
    other = random.random((2, rows, columns), dtype=np.float32)
    other[:, *area.window.slices] = scene[:, *area.window.slices]
    side = min(area.window.shape) // 4 * 4
    for image in (scene, other):
        top, left = area.window.top, area.window.left
        patch = torch.from_numpy(image[None, :, top : top + side, left : left + side])
        low, _ = make_pair(patch)
        if image is scene:
            kept = patch.clone(), low
    assert torch.equal(kept[0], patch)
    assert torch.equal(kept[1], low)


def test_scenes_are_held_out_whole_where_there_are_enough() -> None:
    scenes = [SceneSize(f"s{place}", 64, 64) for place in range(12)]
    split = make_split(scenes, REACH, 0.25, seed=3)
    assert split.by == "scenes"
    assert (len(split.train), len(split.validation), len(split.test)) == (9, 1, 2)


def test_named_scenes_are_held_out() -> None:
    scenes = [SceneSize(name, 64, 64) for name in ("a1", "a2", "b1")]
    split = make_split(scenes, REACH, 0.25, 0, held_out=["a*"])
    assert [area.scene_id for area in split.train] == ["b1"]
    with pytest.raises(UsageError, match="every scene"):
        make_split(scenes, REACH, 0.25, 0, held_out=["*"])
    with pytest.raises(UsageError, match="no scene"):
        make_split(scenes, REACH, 0.25, 0, held_out=["c*"])


def test_scenes_that_are_too_small_are_refused_with_what_is_needed() -> None:
    with pytest.raises(UsageError, match=r"at least 12 x 32 pixels.*tiny has 25 x 10"):
        make_split([SceneSize("tiny", 25, 10)], REACH, 0.25, 0)


# Patches


@pytest.fixture
def scene(tmp_path: Path) -> str:
    values = counts(70, 90, BANDS)
    values[:, :40, :50] = NODATA
    return write_geotiff(tmp_path / "holed.tif", values, scale=SCALE_FACTOR, nodata=NODATA)


def stream(path: str, seat: Seat = ALONE, **given: object) -> PatchStream:
    reader = BlockReader(card(), pixels(**given))
    blocks = cut_blocks([whole(path, 70, 90)], 16)
    return PatchStream(blocks, reader, Shape(16, 3), 5, seat, Augmentation(noise=0.01))


def test_a_stream_that_begins_later_goes_on_alike(scene: str) -> None:
    first, again = stream(scene), stream(scene)
    steps = 3 * first.round_steps
    seen = [first.batch(step) for step in range(steps)]
    for step in range(steps // 2, steps):
        batch = again.batch(step)
        assert torch.equal(batch.high, seen[step].high)
        assert torch.equal(batch.valid, seen[step].valid)


def test_processes_see_different_patches(scene: str) -> None:
    one, other = (stream(scene, Seat(rank, 2)).batch(0).high for rank in range(2))
    assert not torch.equal(one, other)


def test_patches_are_finite_and_mostly_valid(scene: str) -> None:
    patches = stream(scene)
    for step in range(30):
        batch = patches.batch(step)
        assert batch.high.shape == (3, BANDS, 16, 16)
        assert torch.isfinite(batch.high).all()
        measured = batch.valid & batch.used
        assert measured.any(dim=1).float().mean((1, 2)).min() > 0.1
        assert not batch.used[:, 1].any()  # the band that the file calls bad
        assert batch.valid[:, 1].all()


def test_patches_hold_the_scene_as_a_run_sees_it(tmp_path: Path) -> None:
    values = counts(32, 32, BANDS)
    path = write_zarr(tmp_path / "plain.zarr", values, scale_factor=SCALE_FACTOR)
    reader = BlockReader(card(), pixels())
    blocks = cut_blocks([whole(path, 32, 32)], 16)
    batch = PatchStream(blocks, reader, Shape(16, 3), 0, augmentation=NONE).batch(0)
    truth = torch.from_numpy(values.astype(np.float32) * np.float32(SCALE_FACTOR))
    windows = truth.unfold(1, 16, 1).unfold(2, 16, 1)
    for patch in batch.high:
        apart = (windows - patch[:, None, None]).abs().amax((0, 3, 4))
        assert apart.min() < 1e-6


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "wide.zarr", counts(200, 200, BANDS), scale_factor=SCALE_FACTOR)
    one = block_bytes(BANDS, 16)
    reader = BlockReader(card(), pixels(cache_bytes=3 * one))
    blocks = cut_blocks([whole(path, 200, 200)], 16)
    assert len(blocks) > 40
    patches = PatchStream(blocks, reader, Shape(16, 3), 0, most_blocks=2)
    for step in range(5 * patches.round_steps):
        patches.batch(step)
        assert reader.bytes_kept <= 3 * one


def test_every_block_has_its_turn(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "wide.zarr", counts(128, 128, BANDS), scale_factor=SCALE_FACTOR)
    blocks = cut_blocks([whole(path, 128, 128)], 16)
    read: list[Block] = []

    class Noting(BlockReader):
        def read(self, block: Block):  # type: ignore[no-untyped-def]
            read.append(block)
            return super().read(block)

    seats = [Seat(rank, 2) for rank in range(2)]
    for seat in seats:
        reader = Noting(card(), pixels())
        patches = PatchStream(blocks, reader, Shape(16, 3), 0, seat, most_blocks=4)
        patches.batch(0)
        patches.batch(patches.round_steps)  # rounds 0, 1 and, ahead, 2
        patches.close()
    assert set(blocks) <= set(read)


def test_nothing_but_nodata_is_refused(tmp_path: Path) -> None:
    empty = np.full((BANDS, 40, 40), NODATA, np.int16)
    path = write_geotiff(tmp_path / "empty.tif", empty, scale=SCALE_FACTOR, nodata=NODATA)
    patches = PatchStream(
        cut_blocks([whole(path, 40, 40)], 16), BlockReader(card(), pixels()), Shape(16, 1), 0
    )
    with pytest.raises(SceneError, match="nothing to train on"):
        patches.batch(0)


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 300), st.integers(16, 300))
def test_blocks_cover_an_area_and_stay_inside(rows: int, columns: int) -> None:
    part = Part("s", "s", Window(7, 7 + rows, 11, 11 + columns))
    seen = np.zeros((rows, columns), bool)
    for block in cut_blocks([part], 16):
        assert min(block.window.shape) >= 16
        inner = block.window.within(part.window)
        assert inner.top >= 0 and inner.left >= 0
        seen[inner.slices] = True
    assert seen.all()


# State and records


def test_a_state_on_disk_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = SSPSR(card().architecture.config())
    trainer = Trainer(net)
    high = torch.rand(2, BANDS, 16, 16)
    low, _ = make_pair(high)
    for step in range(3):
        trainer.step(low, high, None, step / 10)
    course = Course(12.5, 30.0, [Validation(3, 12.5, 0.1, 31.0)], 31.0)
    best = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    save_state(tmp_path, trainer.state_dict(), best, course)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}

    state, kept, told = load_state(tmp_path)
    other = Trainer(SSPSR(card().architecture.config()))
    other.load_state_dict(state)
    assert told == course and other.steps == 3
    assert all(torch.equal(kept[name], value) for name, value in best.items())
    for each in (trainer, other):
        each.step(low, high, None, 0.4)
    for ours, theirs in zip(trainer.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_end_is_a_time_or_a_number_of_steps() -> None:
    assert Ending(100.0, None, 5).progress(25.0, 7) == 0.25
    assert Ending(None, 40, 5).progress(25.0, 10) == 0.25
    assert Ending(None, 40, 5).progress(0.0, 50) == 1.0


def test_curves_are_a_picture() -> None:
    course = Course(9.0, 30.0, [Validation(s, s, 0.1 / (s + 1), 29.0 + s) for s in range(4)], 32.0)
    picture = curves(course)
    assert picture.startswith("<svg") and picture.count("<polyline") == 3


# Plan


def write_pair(folder: Path) -> None:
    folder.mkdir()
    for place in range(2):
        write_geotiff(folder / f"s{place}.tif", counts(48, 64, BANDS, place), scale=SCALE_FACTOR)


def test_scenes_of_two_sensors_are_refused_by_name(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    write_zarr(tmp_path / "a" / "other.zarr", counts(48, 64, 12), scale_factor=SCALE_FACTOR)
    with pytest.raises(UsageError, match=r"several sensors: .*other.*--include") as caught:
        make_plan(options(source=str(tmp_path / "a"), out=str(tmp_path / "o")))
    assert "\n" not in str(caught.value)


def test_the_model_takes_all_bands_of_the_sensor_and_starts_with_what_is_known(
    tmp_path: Path,
) -> None:
    write_pair(tmp_path / "a")
    (tmp_path / "a" / "broken.tif").write_bytes(b"II*\0 and nothing more")
    plan = make_plan(options(source=str(tmp_path / "a"), out=str(tmp_path / "o"), epochs=2))
    assert plan.card.architecture.bands == BANDS
    assert plan.card.wavelengths == pytest.approx(wavelengths(BANDS).tolist())
    assert plan.split.by == "blocks"
    assert [name for name, _ in plan.left_out] == ["broken"]
    steps = [plan.job_for(processes, 1).ending.steps for processes in (1, 2)]
    assert plan.job.ending.seconds is None and steps[0] and steps[0] >= (steps[1] or 0) > 0


def test_a_sensor_of_more_bands_keeps_the_parents_windows(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    write_zarr(folder / "wide.zarr", counts(48, 64, 40), scale_factor=SCALE_FACTOR)
    same = {"source": str(folder), "out": str(tmp_path / "o"), "epochs": 1}
    plan, own = (make_plan(options(**same | given)) for given in ({}, {"bands": "sensor"}))
    assert (plan.settings.bands, plan.card.architecture.bands) == ("windows", 31)
    assert plan.card.wavelengths == plan.parent.card.wavelengths
    assert own.card.architecture.bands == 40
    assert plan.fingerprint != own.fingerprint


@pytest.mark.parametrize("scale", [2, 8])
def test_another_scale_keeps_what_it_can(tmp_path: Path, scale: int) -> None:
    write_pair(tmp_path / "a")
    same = {"source": str(tmp_path / "a"), "out": str(tmp_path / "o"), "epochs": 1}
    plan = make_plan(options(**same | {"scale": scale, "include": ["s0"], "patch": 3}))
    net, made = unpack(plan.job.model, "the model")
    assert net.config.scale == made.architecture.scale == scale
    parent = plan.parent.net.branch_of(0).head.weight
    assert torch.equal(net.branch_of(0).head.weight, parent)


def test_another_source_or_option_is_another_training(tmp_path: Path) -> None:
    write_pair(tmp_path / "a")
    same = {"source": str(tmp_path / "a"), "out": str(tmp_path / "o"), "epochs": 2}
    prints = [
        make_plan(options(**same | given)).fingerprint
        for given in ({}, {"workers": 2}, {"seed": 1}, {"include": ["s0"]})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
