"""What denoising costs: a training step with 5 groups beside the same step without, 7 objects an image."""

from __future__ import annotations

from functools import partial

from compare import Contest, Functions, Row, main
from ours import made_up, training_step


def steps(preset: str, classes: int, batch: int, height: int, width: int, *overrides: str) -> Functions:
    images = made_up(batch, height, width, objects=7, classes=classes)
    step = partial(training_step, preset, images, classes, *overrides)
    return {"with": step("noise.groups=5"), "without": step("noise=null")}


def contest(what: str, preset: str, *overrides: str) -> Contest:
    """Of a detector of official size."""
    both = partial(steps, preset, 91, 2, 320, 416, *overrides)
    return Contest([both], [Row(f"{what} with / without", "with", "without", 1.06, 1.03)], rounds=11)


if __name__ == "__main__":
    tiny = partial(steps, "dn-deform-tiny", classes=6, batch=16, height=96, width=96)
    main(
        __doc__.partition("\n")[0],
        [
            contest("dab", "dn-dab-r50-50ep"),
            contest("deformable", "dn-deform-pp-r50-12ep"),
            contest("detr", "detr-r50-500ep"),
            contest("conditional", "conditional-r50-50ep"),
            contest("anchor", "dn-anchor-dc5-r50-12ep"),
            contest("group dab", "dn-group-dab-dc5-r50-12ep"),
            contest("sam", "dn-sam-pp-r50-12ep"),
            contest("dino", "dn-dino-r50-12ep"),
            Contest([tiny], [Row("tiny with / without", "with", "without", 1.15, 1.08)], rounds=31),
        ],
    )
