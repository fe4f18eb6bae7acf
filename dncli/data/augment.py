"""From picture and boxes to what the detector sees: DETR's augmentation in training, one fixed size elsewhere.

Every random choice comes from one generator an image, seeded by (seed, epoch, image id).
"""

from __future__ import annotations

import hashlib

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from dndetr.config import DataConfig

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

# DETR's crop: first one of these for the shorter side, then a window with sides between these, for training sizes up to 800.
BEFORE_CROP, CROP, DETR_SIZE = (400, 500, 600), (384, 600), 800
STRIP = 32  # times the shorter side that the longer one has at most before the crop: a line of pixels would fill the memory
SLIVER = 1.0  # pixels: what a crop leaves of an object must be wider and higher

Sample = tuple[Image.Image, tv_tensors.BoundingBoxes, Tensor]  # picture, its boxes in pixels, their labels


def image_generator(seed: int, epoch: int, image_id: int, purpose: str) -> torch.Generator:
    """The source of everything random about an image in an epoch; `purpose` tells independent streams apart."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{image_id}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def training_view(
    picture: Image.Image, boxes: Tensor, labels: Tensor, config: DataConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, random size and, in half of the images, random crop (as DETR and Deformable DETR train).

    `boxes` (M, 4) are cxcywh in [0, 1]. Returns pixels (3, h, w), and the boxes and labels that are still in view.
    """
    width, height = picture.size
    scale = boxes.new_tensor((width, height, width, height))
    boxes = tv_tensors.BoundingBoxes(boxes * scale, format="CXCYWH", canvas_size=(height, width))
    sample = picture, boxes, labels
    if chance(config.flip, rng):
        sample = F.horizontal_flip(sample[0]), F.horizontal_flip(sample[1]), labels
    if chance(config.vertical_flip, rng):
        sample = F.vertical_flip(sample[0]), F.vertical_flip(sample[1]), labels
    if config.crop and chance(0.5, rng):
        sample = cropped(sample, max(config.sizes) / DETR_SIZE, rng)
    picture, boxes, labels = resized(sample, choice(config.sizes, rng), config.max_size)
    height, width = boxes.canvas_size
    boxes = boxes.as_subclass(Tensor) / torch.tensor((width, height, width, height))
    return pixels(picture), boxes, labels


def fixed_view(picture: Image.Image, config: DataConfig) -> Tensor:
    """Pixels (3, h, w) for evaluation and prediction. Boxes in [0, 1] stay as they are."""
    height, width = fitted(picture.height, picture.width, config.eval_size, config.max_size)
    return pixels(F.resize(picture, [height, width]) if picture.size != (width, height) else picture)


def pixels(picture: Image.Image) -> Tensor:
    """RGB picture to normalised (3, h, w) float32."""
    return F.normalize(F.to_dtype(F.pil_to_tensor(picture), torch.float32, scale=True), MEAN, STD, inplace=True)


def picture_of(view: Tensor) -> Image.Image:
    """The inverse of `pixels`: normalised (3, h, w) to a picture."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return F.to_pil_image(F.to_dtype((view * std + mean).clamp(0, 1), torch.uint8, scale=True))


def cropped(sample: Sample, scale: float, rng: torch.Generator) -> Sample:
    """Resize, then cut a random window out; objects that leave it, or nearly, are gone."""
    shorter = round(choice(BEFORE_CROP, rng) * scale)
    picture, boxes, labels = resized(sample, shorter, STRIP * shorter)
    least, most = (max(1, round(side * scale)) for side in CROP)
    width, height = (between(min(least, side), min(most, side), rng) for side in picture.size)
    left, top = between(0, picture.width - width, rng), between(0, picture.height - height, rng)
    # F.crop clamps too, but its way back from corners to centres rounds past the border, and sanitize would drop such a box.
    boxes = F.clamp_bounding_boxes(F.crop(boxes, top, left, height, width))
    boxes, stays = F.sanitize_bounding_boxes(boxes, min_size=SLIVER)
    return F.crop(picture, top, left, height, width), boxes, labels[stays]


def resized(sample: Sample, size: int, max_size: int | None) -> Sample:
    picture, boxes, labels = sample
    height, width = fitted(picture.height, picture.width, size, max_size)
    if picture.size == (width, height):
        return sample
    return F.resize(picture, [height, width]), F.resize(boxes, [height, width]), labels


def fitted(height: int, width: int, size: int, max_size: int | None) -> tuple[int, int]:
    """Height and width with `size` as the shorter side, or less where the longer would exceed `max_size`.

    DETR's rule, to the pixel: what is left of the shorter side is rounded first, and the longer one, cut off to whole pixels,
    follows from it. By that rounding DETR lets it exceed the maximum by a few pixels in long strips; here it never does.
    """
    shorter, longer = sorted((height, width))
    if max_size is not None and longer * size > max_size * shorter:
        size = max(1, round(max_size * shorter / longer))
    length = size * longer // shorter
    length = length if max_size is None else min(length, max_size)
    return (size, length) if height <= width else (length, size)


def chance(probability: float, rng: torch.Generator) -> bool:
    return torch.rand((), generator=rng).item() < probability


def between(least: int, most: int, rng: torch.Generator) -> int:
    """A whole number from `least` to `most`, both included."""
    return int(torch.randint(least, most + 1, (), generator=rng))


def choice(options: tuple[int, ...], rng: torch.Generator) -> int:
    return options[between(0, len(options) - 1, rng)]
