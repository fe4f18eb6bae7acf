"""What denoising costs: a training step with 5 groups beside the same step without, 7 objects an image."""

from __future__ import annotations

from functools import partial

from compare import Contest, Functions, Row, main
from ours import made_up, training_step


def steps(preset: str, classes: int, batch: int, height: int, width: int) -> Functions:
    images = made_up(batch, height, width, objects=7, classes=classes)
    return {"with": training_step(preset, images, classes), "without": training_step(preset, images, classes, "noise=null")}


if __name__ == "__main__":
    dab = partial(steps, "dn-dab-r50-50ep", classes=91, batch=2, height=320, width=416)
    tiny = partial(steps, "dn-deform-tiny", classes=6, batch=16, height=96, width=96)
    main(
        __doc__.partition("\n")[0],
        [
            Contest([dab], [Row("dab with / without", "with", "without", 1.06, 1.03)], rounds=11),
            Contest([tiny], [Row("tiny with / without", "with", "without", 1.15, 1.08)], rounds=31),
        ],
    )
