"""SMCA: DETR whose queries look around places that they tell, with one scale or several; a baseline of Table 4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dndetr.models.deformable import Pyramid
from dndetr.models.denoising.queries import Known, plain
from dndetr.models.heads import DetectionHeads
from dndetr.models.modulated import ModulatedDecoder, Scale, ScaleEncoder
from dndetr.models.neck import Neck, Projection, valid_share
from dndetr.models.position import encode_image
from dndetr.models.structures import STRICT, Feature, Images, Output, demand, positive, transformer_sizes
from dndetr.models.transformer import DenseEncoder, init_xavier


@dataclass(frozen=True)
class SmcaConfig:
    """SMCA with a single scale by default; with 4, see `Smca`, its code takes an ffn of 1024 and 5 encoder layers."""

    name: Literal["smca"] = "smca"
    scales: int = 1
    queries: int = 300
    hidden: int = 256
    heads: int = 8
    ffn: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    dropout: float = 0.1

    __pydantic_config__ = STRICT
    untold: ClassVar[str | None] = "host.name: smca"  # the setting by which queries can be told nothing

    def __post_init__(self) -> None:
        demand(self, **positive(self, "scales"), **transformer_sizes(self))


class Smca(nn.Module):
    """`forward(images, known)`: the one contract of every host.

    The row of Table 4 is the paper's multi-scale form, with attention within and between scales in its encoder; its code was
    not published. With 4 scales this is the form that was: its encoder exchanges scales by convolutions and has no attention.
    It has the row's AP (by its log), parameters and multiply-adds, but other APs by size and by overlap. Which depthwise
    convolutions of a layer share their weights is not known to us; here what goes up is what the coarser scale's own gives,
    and all that goes down goes through the same, which makes as many parameters as the log tells.
    """

    def __init__(self, config: SmcaConfig, *, backbone: nn.Module, num_classes: int, embeddings: Tensor | None = None):
        super().__init__()
        width, scales, layers = config.hidden, config.scales, config.encoder_layers
        sizes, self.dense = dict(width=width, ffn=config.ffn, dropout=config.dropout), scales == 1
        if self.dense:
            plain = dict(activation=nn.ReLU, scale_positions=False)
            self.encoder = DenseEncoder(layers=layers, heads=config.heads, **plain, **sizes)
        else:
            self.encoder = ScaleEncoder(layers=layers, scales=scales, **sizes)
        self.decoder = ModulatedDecoder(layers=config.decoder_layers, heads=config.heads, scales=scales, **sizes)
        init_xavier(self)
        for layer in self.decoder.layers:
            layer.modulation.init_round()
        self.neck = Neck(backbone.channels, width, scales, norm=False, embed=not self.dense)
        self.halve = None if self.dense else Projection(width, width, kernel_size=3, stride=2, padding=1, norm=False)
        self.position = nn.Parameter(torch.randn(config.queries, width))
        self.heads = DetectionHeads(width, num_classes, 1, shared=True, eps=1e-5, embeddings=embeddings)
        self.heads.box[0].layers[-1].reset_parameters()  # boxes do not start as the points that they are around
        self.backbone = backbone
        kept = backbone.strides[-self.neck.kept :]
        self.strides = kept + [kept[-1] * 2 ** (i + 1) for i in range(scales - len(kept))]

    def forward(self, images: Images, known: Known | None = None) -> Output:
        image = self.neck(self.backbone(images), temperature=TEMPERATURE, offset=0.0)
        tokens = self.encoder(image.tokens, image.position, image.padding) if self.dense else self.encoder(image)
        queries = plain(torch.zeros_like(self.position), self.position, known, batch=len(tokens))
        states, boxes, center = self.decoder(queries, self.scales(images, image, tokens), self.heads)
        return Output(self.heads.logits(0, states), boxes, center, queries.layout)

    def scales(self, images: Images, image: Pyramid, tokens: Tensor) -> list[Scale]:
        """The encoded image as the decoder sees it; the finest of several scales is brought to the resolution of the next."""
        h, w = images.pixels.shape[-2:]
        size = valid_share(Feature(images.pixels, images.padding)) * tokens.new_tensor([w, h], dtype=torch.float32)
        parts = [x.split(image.sizes, dim=1) for x in (tokens, image.position)]
        given = zip(*parts, image.hidden, image.shapes, self.strides, strict=True)
        found = [Scale(*part, shape, size / stride, stride) for *part, shape, stride in given]
        return found if self.halve is None else [self.halved(found[0], size), *found[1:]]

    def halved(self, scale: Scale, size: Tensor) -> Scale:
        padding = None if scale.padding is None else scale.padding.unflatten(1, scale.shape)
        x, padding = self.halve(Feature(scale.tokens.mT.unflatten(2, scale.shape), padding))
        position = encode_image(Feature(x, padding), x.shape[1], TEMPERATURE) + self.neck.level[0]
        padding, stride = None if padding is None else padding.flatten(1), 2 * scale.stride
        return Scale(x.flatten(2).mT, position.to(x.dtype), padding, tuple(x.shape[-2:]), size / stride, stride)


TEMPERATURE = 10000.0  # of the image's positional encoding
