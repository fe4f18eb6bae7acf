"""A dataset in numbers: they are right, they can be read on a narrow terminal and in a file, and the picture shows them."""

import re

import numpy as np
import pytest
from PIL import Image

from dndetr import console
from dndetr.analysis import output
from dndetr.config import DataConfig
from dndetr.data.check import SIDES, count
from dndetr.data.stats import evaluated, measure_dataset
from tests.data.coco_files import at, image, item, write_split

LIMITS = ("below 32", "below 96", "from 96")


def dataset(root):
    """Sizes 8, 32 and 96 in an image of 200 x 100, 10 of a box that sticks out, a crowd, an empty box; one object in val."""
    annotations = [
        item(1, 1, [0, 0, 16, 4]),
        item(2, 1, [0, 0, 32, 32], category=7),
        item(3, 1, [0, 0, 96, 96]),
        item(4, 2, [-10, 0, 20, 10]),
        item(5, 2, [0, 0, 9, 9], iscrowd=1),
        item(6, 2, [0, 0, 9, 0]),
    ]
    write_split(root, "train", [image(1, 200, 100), image(2), image(3)], annotations)
    return write_split(root, "val", [image(1)], [item(1, 1, [0, 0, 4, 16])])


def row(text: str, beginning: str) -> list[str]:
    """The numbers of the first row that begins so."""
    return re.search(rf"^ *{re.escape(beginning)} +(\d.*)$", text, flags=re.MULTILINE)[1].split()


def test_what_is_measured(tmp_path):
    train, val = measure_dataset(at(dataset(tmp_path)))
    assert (train.name, val.name, train.crowds, val.crowds) == ("train", "val", 1, 0)
    assert train.counts.tolist() == [3, 1, 0] and val.counts.tolist() == [1]
    assert np.allclose(train.sides, [8, 32, 96, 10], atol=1e-4)
    assert np.allclose(train.relative, [8 / 20000**0.5, 32 / 20000**0.5, 96 / 20000**0.5, 10 / 800**0.5])
    assert np.allclose(train.forms, [4, 1, 1, 1], atol=1e-4) and np.allclose(val.forms, [0.25], atol=1e-4)
    objects, images = train.of_classes()
    assert objects.tolist() == [3, 1] and images.tolist() == [2, 1]


def test_sizes_at_the_evaluation_size(tmp_path):
    train, _ = measure_dataset(at(dataset(tmp_path)))
    sizes = evaluated(train, DataConfig(eval_size=50, max_size=90))
    assert sizes.tolist() == [[90, 45], [90, 45], [90, 45]]
    assert np.allclose(train.sides_in(sizes), [8 * 0.45, 32 * 0.45, 96 * 0.45, 10 * 2.25], atol=1e-4)


def test_the_tables(tmp_path, main):
    done = main("data", "stats", dataset(tmp_path), "data.eval_size=50", "data.max_size=200", "host.queries=2")
    assert (done.code, done.err) == (0, "")
    assert row(done.out, "images") == ["3", "1"]
    assert row(done.out, "without objects") == ["1", "33.3%", "0", "0.0%"]
    assert row(done.out, "wide") == ["40", "to", "200", "40"]
    assert row(done.out, "objects") == ["4", "1"]
    assert row(done.out, "in an image, median") == ["1", "1"]
    assert row(done.out, "crowds, which nothing learns") == ["1", "0"]
    assert row(done.out, "medium, below 96") == ["1", "25.0%", "0", "0.0%"]
    assert row(done.out, "large, from 96") == ["1", "25.0%", "0", "0.0%"]
    assert row(done.out, "8 to 16") == ["2", "50.0%", "1", "100.0%"]
    assert row(done.out, "wider than 4:1") == ["1", "25.0%", "0", "0.0%"]
    assert row(done.out, "cat") == ["3", "2", "1", "1"]
    assert row(done.out, "dog") == ["1", "1", "0", "0"]
    assert row(done.out, "objects in an image at most, for 2 queries") == ["3", "1"]
    assert row(done.out, "images at data.eval_size=50, wide") == ["100", "100"]
    assert row(done.out, "objects below 16 x 16 pixels") == ["1", "25.0%", "0", "0.0%"]
    assert "queries: 2 for at most 3 objects - WARNING" in done.out
    assert "denoising: 5 groups, at most 15 denoising queries an image\n" in done.out
    assert "val: no object of 1 of 2 classes: dog" in done.out and "train: no object" not in done.out


def test_of_many_classes_both_ends_are_shown(tmp_path, main):
    categories = [{"id": i, "name": f"kind-{i}"} for i in range(1, 31)]
    annotations = [item(100 * i + j, 1, [0, 0, 5, 5], category=i) for i in range(1, 31) for j in range(i)]
    done = main("data", "stats", write_split(tmp_path, "train", [image(1)], annotations, categories))
    shown = [int(number) for number in re.findall(r"kind-(\d+)", done.out)]
    assert shown == [*range(30, 20, -1), *range(10, 0, -1)]
    assert "... 10 more" in done.out


def test_names_are_shown_as_they_are(tmp_path, main):
    categories = [{"id": 3, "name": "[red]cat[/red]"}]
    done = main("data", "stats", write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 5, 5])], categories))
    assert row(done.out, "[red]cat[/red]") == ["1", "1"]


def test_no_line_is_wider_than_a_terminal_of_80_columns(tmp_path, main, monkeypatch):
    categories = [{"id": i, "name": f"a class with a rather long name {i}"} for i in (3, 7)]
    root = dataset(tmp_path)
    for split in ("train", "val"):
        write_split(root, split, [image(1, 200, 100)], [item(1, 1, [0, 0, 5, 5])], categories)
    narrow = console.Console(width=80, highlight=False)
    monkeypatch.setattr(output, "console", narrow)
    done = main("data", "stats", root)
    assert max(map(len, done.out.splitlines())) <= 80
    assert row(done.out, "large, from 96") == ["0", "0.0%", "0", "0.0%"]


def test_a_split_without_objects_and_a_dataset_with_one_split(tmp_path, main):
    write_split(tmp_path, "val", [image(1)], [])
    assert row(main("data", "stats", tmp_path).out, "objects below 8 x 8 pixels") == ["0", "0.0%"]
    done = main("data", "stats", dataset(tmp_path), "--out", tmp_path / "one.png")
    assert done.code == 0
    write_split(tmp_path, "val", [image(1)], [])
    assert main("data", "stats", tmp_path, "--out", tmp_path / "two.png").code == 0


def test_the_picture(tmp_path, main):
    out = tmp_path / "numbers.png"
    done = main("data", "stats", dataset(tmp_path), "--out", out)
    assert done.out.splitlines()[-1] == f"drawn: {out}"
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width > 2000
    assert main("data", "stats", tmp_path, "--out", out).err == f"{out}: exists; give a new file with --out\n"
    wrong = main("data", "stats", tmp_path, "--out", tmp_path / "numbers.pdf")
    assert (wrong.code, "numbers.pdf: the picture is a PNG; give --out a file that ends in .png" in wrong.err) == (2, True)
    lost = main("data", "stats", tmp_path, "--out", tmp_path / "no" / "numbers.png")
    assert (lost.code, "numbers.png: cannot be written: No such file or directory; give another" in lost.err) == (2, True)


def test_settings_are_a_preset_s_with_changes(tmp_path, main):
    root = dataset(tmp_path)
    assert "with dn-deform-lite" in main("data", "stats", root, "--preset", "dn-deform-lite").out
    assert row(main("data", "stats", f"data.root={root}", "host.queries=7").out, "queries:")[0] == "7"
    assert row(main("data", "stats", "host.queries=8", f"data.root={root}").out, "queries:")[0] == "8"


def test_defects_are_refused(tmp_path, main):
    write_split(tmp_path, "train", [image(1)], [item(1, 1, [0, 0, 5, 5], category=99)])
    done = main("data", "stats", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"1 defect; see them all with: dndetr data check {tmp_path}\n")


@pytest.mark.parametrize("name", ["bccd", "coco-open"])
def test_real_datasets_have_the_sizes_that_a_check_counts(real, main, name):
    done, counted = main("data", "stats", real(name)), count(at(real(name)).annotations("train"))
    assert row(done.out, "objects")[0] == str(counted.objects)
    sizes = {size: int(row(done.out, f"{size}, {limit}")[0]) for size, limit in zip(SIDES, LIMITS, strict=True)}
    assert sizes == counted.of_size
