"""Pictures of training samples: they show what a training gets to see, view, objects and noise."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dndetr.config import Config
from dndetr.data import look as module
from dndetr.data.augment import picture_of, pixels
from dndetr.data.coco import load_split
from dndetr.data.layouts import find_dataset
from dndetr.data.loader import DetectionDataset, train_loader
from dndetr.data.look import look
from dndetr.models.boxes import cxcywh_to_xyxy
from dndetr.resolve import load_preset
from dndetr.tasks import build_task
from tests.data.coco_files import image, item, write_split


def settings(root: Path, *overrides: str) -> Config:
    sizes = ("data.sizes=[64, 80]", "data.eval_size=64", "data.max_size=96", "data.crop=true", "noise.label_flip=0.5")
    return load_preset("dn-deform-tiny", [f"data.root={root}", *sizes, *overrides]).config


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture
def drawn(monkeypatch) -> list[tuple[Image.Image, list]]:
    """Every picture that is drawn on, and its marks."""
    calls, draw = [], module.draw_marks
    monkeypatch.setattr(module, "draw_marks", lambda picture, marks: calls.append((picture, marks)) or draw(picture, marks))
    return calls


def first_batch(config: Config, count: int):
    """The images and objects of a training's first step, and what its task makes of them."""
    split = load_split(find_dataset(config.data, config.train.seed), "train")
    images = DetectionDataset(split, config.data, config.train.seed, train=True)
    loader = train_loader(images, batch_size=count, workers=0, seed=config.train.seed)
    ((batch, targets),) = next(iter(loader))
    return batch, build_task(config, split.categories).at(1)(targets)


def in_pixels(boxes: torch.Tensor, picture: Image.Image) -> torch.Tensor:
    return cxcywh_to_xyxy(boxes) * torch.tensor([*picture.size, *picture.size])


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("noise.groups=2", "noise.max_queries=4"),
        ("task.classes=[circle, star]",),
        ("task.name=known_objects",),
        ("task.name=known_labels",),
    ],
)
def test_what_is_drawn_is_what_the_first_step_of_a_training_gets(shapes, tmp_path, drawn, overrides):
    config, count = settings(shapes, *overrides), 6
    look(config, tmp_path / "out", count)
    batch, (known, wanted) = first_batch(config, count)
    noised, groups = known.denoise, min(module.GROUPS, known.denoise.groups)
    calls = iter(drawn)
    for i in range(count):
        picture, marks = next(calls)
        height, width = (int((~batch.padding[i]).any(dim).sum()) for dim in (1, 0))
        assert picture.size == (width, height)
        assert (
            np.abs(np.asarray(picture, dtype=float) - np.asarray(picture_of(batch.pixels[i, :, :height, :width]))).max() == 0
        )
        assert [mark.label for mark in marks] == wanted.targets[i].labels.tolist()
        boxes = torch.tensor([mark.box for mark in marks]).reshape(-1, 4)
        torch.testing.assert_close(boxes, in_pixels(wanted.targets[i].boxes, picture), atol=1e-3, rtol=0)
        for group in range(groups):
            picture, marks = next(calls)
            slots = torch.arange(group * noised.slots, (group + 1) * noised.slots)
            slots = slots[noised.valid[i, slots]]
            shown = {(mark.label, *(round(v, 2) for v in mark.box)) for mark in marks if mark.color is None}
            told = zip(noised.labels[i, slots].tolist(), in_pixels(noised.boxes[i, slots], picture).tolist(), strict=True)
            assert shown == {(label, *(round(v, 2) for v in box)) for label, box in told}
            truth = wanted.reconstructed[i].labels[noised.objects[i, slots]]
            assert sum(mark.text != "" for mark in marks) == int((truth != noised.labels[i, slots]).sum())
        for _ in range(2):  # the same for the contact sheet
            next(calls)
    assert next(calls, None) is None


def test_flipped_labels_are_named_thick_and_on_top(shapes, tmp_path, drawn):
    look(settings(shapes, "noise.label_flip=1", "noise.groups=1"), tmp_path / "one", 4)
    texts = [mark.text for _, marks in drawn for mark in marks if mark.thick == 2 and mark.color is None]
    assert len(texts) > 4 and all(", is " in text for text in texts)
    drawn.clear()
    look(settings(shapes, "noise.label_flip=0.5", "noise.groups=1"), tmp_path / "half", 4)
    orders = [[mark.thick for mark in marks if mark.color is None] for _, marks in drawn[1::2]]
    assert {1, 2} <= {thick for order in orders for thick in order} and all(order == sorted(order) for order in orders)


def test_where_labels_are_not_denoised_none_is_told(shapes, tmp_path, drawn):
    look(settings(shapes, "noise.labels=false"), tmp_path / "out", 2)
    noised = [mark for _, marks in drawn for mark in marks if mark.color == module.UNKNOWN]
    assert noised and all(mark.text == "" for mark in noised)


def test_negatives_are_grey_and_their_objects_are_drawn_once(shapes, tmp_path, drawn, monkeypatch):
    headings, heading = [], module.heading
    monkeypatch.setattr(module, "heading", lambda *args: headings.append(heading(*args)) or headings[-1])
    look(settings(shapes, "noise.contrastive=true", "noise.groups=1"), tmp_path / "out", 2)
    for (_, objects), (_, marks), said in zip(drawn[::2], drawn[1::2], headings, strict=True):
        kinds = [mark.color for mark in marks]
        assert kinds.count(module.NEGATIVE) == kinds.count(module.WHITE) == kinds.count(None) == len(objects) > 0
        assert said.endswith(f", {len(objects)} negative{'s' if len(objects) > 1 else ''}")


def test_without_noise_there_are_samples_alone(shapes, tmp_path, drawn):
    look(settings(shapes, "noise=null"), tmp_path / "out", 3)
    assert len(drawn) == 3 * 2 and all(mark.text for _, marks in drawn for mark in marks)


def test_a_seed_gives_its_pictures(shapes, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        look(settings(shapes, f"train.seed={seed}"), tmp_path / name, 3)
    assert digests(tmp_path / "one") == digests(tmp_path / "same")
    assert digests(tmp_path / "one")["look.jpg"] != digests(tmp_path / "other")["look.jpg"]


def test_pixels_come_back_as_they_were():
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(picture_of(pixels(Image.fromarray(values)))), values)


def many(root: Path, count: int) -> Path:
    objects = [item(i, i, [0, 0, 9, 9]) for i in range(1, count + 1)]
    return write_split(root, "train", [image(i) for i in range(1, count + 1)], objects)


def test_an_image_with_an_exif_rotation_is_among_them(tmp_path):
    root = many(tmp_path / "data", 30)
    look(settings(root), tmp_path / "before", 3)
    shown = {path.stem for path in (tmp_path / "before").iterdir()}
    turned = next(str(i) for i in range(1, 31) if str(i) not in shown)
    with Image.open(root / "train" / f"{turned}.png") as picture:
        exif = picture.getexif()
        exif[0x0112] = 3
        picture.save(root / "train" / f"{turned}.png", exif=exif)
    look(settings(root), tmp_path / "after", 3)
    assert {path.stem for path in (tmp_path / "after").iterdir()} - shown == {turned}
    assert len(list((tmp_path / "after").iterdir())) == 4


def test_an_image_that_is_called_look_keeps_a_file_of_its_own(tmp_path):
    root = write_split(tmp_path / "data", "train", [image(1, file_name="look.png")], [item(1, 1, [0, 0, 9, 9])])
    told = look(settings(root), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["look-2.jpg", "look.jpg"]
    assert told == (
        f"{tmp_path / 'out'}: 1 of 1 training images as epoch 1 sees them; all at once: {tmp_path / 'out' / 'look.jpg'}"
    )


def test_the_command(shapes, tmp_path, main):
    out = tmp_path / "out"
    done = main("data", "look", f"data.root={shapes}", "--out", out, "--count", 2)
    assert (done.code, done.err) == (0, "") and len(list(out.iterdir())) == 3
    again = main("data", "look", "dn-deform-tiny", f"data.root={shapes}", "--out", out)
    assert (again.code, again.err) == (2, f"{out}: is not an empty folder; remove it or choose another place\n")
    assert "unknown preset 'dn-deform-tyni'; did you mean" in main("data", "look", "dn-deform-tyni", "--out", out).err
    unknown = main("data", "look", f"data.root={shapes}", "task.classes=[cow]", "--out", tmp_path / "cow")
    assert (unknown.code, unknown.err.startswith("task.classes: cow: no class of the data")) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_image_that_cannot_be_read_leaves_nothing(tmp_path, main):
    root = many(tmp_path / "data", 2)
    (root / "train" / "2.png").write_bytes(b"no picture")
    done = main("data", "look", f"data.root={root}", "--out", tmp_path / "out")
    assert (done.code, "2.png: cannot be read as an image" in done.err) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
