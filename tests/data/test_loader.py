import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.utils.data._utils.pin_memory import pin_memory

from dndetr.config import DataConfig
from dndetr.console import UserError
from dndetr.data.coco import load_split
from dndetr.data.loader import DetectionDataset, Refusal, collate, eval_loader, packed, train_loader, unpacked
from dndetr.models.structures import Images, Target
from tests.data.coco_files import at, image, item, write_split

CONFIG = DataConfig(sizes=(48, 64), eval_size=64, max_size=96, vertical_flip=0.5)


def dataset(shapes, train=True, seed=0) -> DetectionDataset:
    return DetectionDataset(load_split(at(shapes), "train" if train else "val"), CONFIG, seed, train)


def loader(shapes, **options):
    return train_loader(dataset(shapes), **{"batch_size": 8, "workers": 0, "seed": 0} | options)


def ids(parts) -> list[list[int]]:
    return [[target.image_id for target in targets] for _, targets in parts]


def assert_same(one, other):
    (images, targets), (other_images, other_targets) = one, other
    torch.testing.assert_close(images.pixels, other_images.pixels, rtol=0, atol=0)
    assert (images.padding is None) == (other_images.padding is None)
    assert images.padding is None or torch.equal(images.padding, other_images.padding)
    for a, b in zip(targets, other_targets, strict=True):
        assert (a.image_id, a.size, a.labels.tolist(), a.boxes.tolist()) == (
            b.image_id,
            b.size,
            b.labels.tolist(),
            b.boxes.tolist(),
        )


def test_collate():
    small, wide = torch.rand(3, 4, 5), torch.rand(3, 2, 9)
    target = Target(torch.tensor([1]), torch.rand(1, 4))
    images, targets = collate([(small, target), (wide, target)])
    assert images.pixels.shape == (2, 3, 4, 9) and targets == [target, target]
    assert torch.equal(images.pixels[0, :, :, :5], small) and torch.equal(images.pixels[1, :, :2], wide)
    assert images.padding[0].sum() == 4 * 4 and images.padding[1].sum() == 2 * 9
    assert (images.pixels * images.padding[:, None]).abs().max() == 0
    images, _ = collate([(small, target), (small, target)])
    assert torch.equal(images.pixels, torch.stack((small, small))) and images.padding is None


def test_an_item_depends_on_seed_epoch_and_image(shapes):
    views = {key: dataset(shapes, seed=key[0])[key[1:]] for key in [(0, 1, 3), (1, 1, 3), (0, 2, 3)]}
    shapes_and_sums = {(view.shape, view.sum().item()) for view, _ in views.values()}
    assert len(shapes_and_sums) == 3
    again, target = dataset(shapes)[1, 3]
    assert torch.equal(again, views[0, 1, 3][0]) and target.image_id == 4 and target.size == (64, 64)


def test_evaluation_changes_nothing_but_the_size(shapes):
    data = dataset(shapes, train=False)
    view, target = data[0, 2]
    assert view.shape == (3, 64, 64)
    assert torch.equal(target.boxes, data.split.objects(3).boxes) and torch.equal(data[5, 2][0], view)


def test_an_epoch_sees_each_image_once(shapes):
    batches = loader(shapes)
    first = [ids(parts)[0] for parts in batches]
    assert len(batches) == len(first) == 3 and sorted(sum(first, [])) == list(range(1, 25))
    assert [ids(parts)[0] for parts in batches] == first
    batches.set_epoch(2)
    assert [ids(parts)[0] for parts in batches] != first
    assert [ids(parts)[0] for parts in loader(shapes, seed=1)] != first


def test_the_incomplete_batch_is_left_out(shapes):
    steps = list(loader(shapes, batch_size=10))
    assert len(steps) == 2 and all(len(ids(parts)[0]) == 10 for parts in steps)


def test_fewer_images_than_a_batch(shapes):
    parts = [ids(parts) for parts in loader(shapes, batch_size=50, accumulate=5)]
    assert len(parts) == 1 and sorted(sum(parts[0], [])) == list(range(1, 25))
    assert all(parts[0])


def test_processes_and_parts_share_the_same_batch(shapes):
    whole = [ids(parts)[0] for parts in loader(shapes)]
    of_rank = [[ids(parts) for parts in loader(shapes, accumulate=2, rank=rank, world=2)] for rank in (0, 1)]
    for step, batch in enumerate(whole):
        assert of_rank[0][step] + of_rank[1][step] == [batch[0:2], batch[2:4], batch[4:6], batch[6:8]]


def test_workers_change_nothing(shapes):
    alone, together = loader(shapes, accumulate=2), loader(shapes, accumulate=2, workers=2)
    for epoch in (1, 2):
        alone.set_epoch(epoch)
        together.set_epoch(epoch)
        for one, other in zip(alone, together, strict=True):
            for part, other_part in zip(one, other, strict=True):
                assert_same(part, other_part)


def test_an_epoch_that_is_left_early(shapes):
    batches = loader(shapes, workers=1, batch_size=2)
    next(iter(batches))
    batches.set_epoch(2)
    alone = loader(shapes, batch_size=2)
    alone.set_epoch(2)
    assert [ids(parts) for parts in batches] == [ids(parts) for parts in alone]


def test_numbers_that_do_not_divide(shapes):
    with pytest.raises(UserError, match=r"batch_size 8 .* 3 processes x 2 accumulated = 6 parts; .* for instance 12"):
        loader(shapes, world=3, accumulate=2)
    with pytest.raises(UserError, match="24 training images are too few for 5 processes x 5 accumulated = 25 parts"):
        loader(shapes, batch_size=25, world=5, accumulate=5)


@pytest.mark.parametrize("world, workers", [(1, 0), (3, 0), (3, 1), (10, 0)])
def test_evaluation_sees_each_image_once(shapes, world, workers):
    seen = []
    for rank in range(world):
        share = eval_loader(dataset(shapes, train=False), batch_size=2, rank=rank, world=world, workers=workers)
        parts = list(share)
        assert len(parts) == len(share)
        seen += sum(ids(parts), [])
    assert sorted(seen) == list(range(1, 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_sentence(tmp_path, workers):
    root = write_split(tmp_path, "val", [image(1), image(2), image(3)], [item(1, 1, [0, 0, 9, 9])])
    (root / "val" / "2.png").write_bytes(b"broken")
    Image.new("RGB", (9, 9)).save(root / "val" / "3.png")
    data = DetectionDataset(load_split(at(root), "val"), CONFIG, 0, False)
    with pytest.raises(UserError) as caught:
        list(eval_loader(data, batch_size=4, workers=workers))
    assert len(caught.value.lines) == 2
    assert caught.value.lines[0].startswith(f"{root / 'val' / '2.png'}: cannot be read as an image")
    assert "3.png: the image is 9 x 9, its annotations say 40 x 20" in caught.value.lines[1]


@pytest.mark.parametrize("name", ["bccd", "coco-open"])
def test_real_data(real, name):
    config = DataConfig(sizes=(128, 160), eval_size=160, max_size=256)
    data = DetectionDataset(load_split(at(real(name)), "train"), config, 0, True)
    for index in range(0, len(data), 9):
        view, target = data[1, index]
        assert view.shape[0] == 3 and max(view.shape) <= 256 and torch.isfinite(view).all()
        assert len(target.labels) == len(target.boxes)
        assert (target.boxes >= 0).all() and (target.boxes <= 1 + 1e-6).all() and (target.boxes[:, 2:] > 0).all()


def test_batches_survive_the_way_into_pinned_memory(monkeypatch):
    """Where there is a GPU, DataLoader rebuilds what workers send."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    images = Images(torch.rand(2, 3, 4, 4), None)
    targets = [
        Target(torch.tensor([1]), torch.rand(1, 4), 7, (4, 3)),
        Target(torch.tensor([], dtype=int), torch.rand(0, 4), 9),
    ]
    pinned_images, pinned = unpacked(pin_memory(packed((images, targets))))
    torch.testing.assert_close(pinned_images.pixels, images.pixels)
    assert pinned_images.padding is None
    assert [(t.image_id, t.size, t.labels.tolist()) for t in pinned] == [(7, (4, 3), [1]), (9, (0, 0), [])]
    assert pin_memory(Refusal(("a.json: broken",))) == Refusal(("a.json: broken",))


def test_workers_do_not_keep_python_from_exiting(shapes):
    """Python ends children by SIGTERM and waits for them; these leave that signal to the main process."""
    script = f"""
from dndetr.config import DataConfig
from dndetr.data.coco import load_split
from dndetr.data.layouts import find_dataset
from dndetr.data.loader import DetectionDataset, eval_loader
split = load_split(find_dataset(DataConfig(root={str(shapes)!r})), "val")
held = iter(eval_loader(DetectionDataset(split, DataConfig(), 0, False), batch_size=2, workers=1))
next(held)
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
