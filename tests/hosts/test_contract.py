"""The contract of every host: what the training loop, the losses and the analyses may rely on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dndetr.models.backbone import BackboneConfig
from dndetr.models.criterion import Criterion, LossConfig, Wanted
from dndetr.models.denoising.noise import NoiseConfig, noise_targets
from dndetr.models.denoising.queries import Known
from dndetr.models.hosts import HOSTS, build_detector
from dndetr.models.hosts.anchor_detr import AnchorDetrConfig
from dndetr.models.hosts.conditional_detr import ConditionalDetrConfig
from dndetr.models.hosts.dab_detr import DabDetrConfig
from dndetr.models.hosts.deformable_detr import DeformableDetrConfig
from dndetr.models.hosts.detr import DetrConfig
from dndetr.models.hosts.dino import DinoConfig
from dndetr.models.hosts.sam_detr import SamDetrConfig
from dndetr.models.hosts.smca import SmcaConfig
from dndetr.models.matcher import MatchConfig, Matcher
from dndetr.models.structures import FieldErrors, Images, Target

CLASSES, QUERIES = 5, 9
SIZES = dict(queries=QUERIES, hidden=32, heads=4, ffn=48, encoder_layers=1, decoder_layers=3)
FORMS = {
    "dab": DabDetrConfig(**SIZES),
    "dab, 3 patterns": DabDetrConfig(**SIZES, patterns=3),
    "dab, class embeddings": DabDetrConfig(**SIZES),
    "deformable ++": DeformableDetrConfig(**SIZES, levels=2),
    "deformable, dense decoder": DeformableDetrConfig(**SIZES, levels=2, decoder="dense"),
    "deformable, dense, 3 patterns": DeformableDetrConfig(**SIZES, levels=2, decoder="dense", patterns=3),
    "deformable, points": DeformableDetrConfig(**SIZES, levels=2, query="point"),
    "deformable, points, no refinement": DeformableDetrConfig(**SIZES, levels=2, query="point", refine=False),
    "detr": DetrConfig(**SIZES, dropout=0),
    "detr, pre-norm": DetrConfig(**SIZES, dropout=0, pre_norm=True),
    "detr, class embeddings": DetrConfig(**SIZES, dropout=0),
    "conditional": ConditionalDetrConfig(**SIZES, dropout=0),
    "conditional, 3 groups": ConditionalDetrConfig(**SIZES, dropout=0, groups=3),
    "dab, 3 groups, 2 patterns": DabDetrConfig(**SIZES, groups=3, patterns=2),
    "deformable ++, 3 groups": DeformableDetrConfig(**SIZES, levels=2, groups=3),
    "detr, 3 groups": DetrConfig(**SIZES, dropout=0, groups=3),
    "dino": DinoConfig(**SIZES, levels=2),
    "dino, class embeddings": DinoConfig(**SIZES, levels=2),
    "deformable ++, two stages": DeformableDetrConfig(**SIZES, levels=2, two_stage=True, look_twice=True),
    "deformable, points, two stages": DeformableDetrConfig(**SIZES, levels=2, query="point", two_stage=True),
    "deformable, two stages, class embeddings": DeformableDetrConfig(**SIZES, levels=2, two_stage=True),
    "sam": SamDetrConfig(**SIZES, levels=1, smca=False),
    "sam, smca": SamDetrConfig(**SIZES, levels=1, norm=True),
    "sam ++": SamDetrConfig(**SIZES, levels=2),
    "sam ++, class embeddings": SamDetrConfig(**SIZES, levels=2),
    "sam ++, 3 groups": SamDetrConfig(**SIZES, levels=3, groups=3),
    "smca": SmcaConfig(**SIZES, dropout=0),
    "smca, 3 scales": SmcaConfig(**SIZES, dropout=0, scales=3),
    "anchor": AnchorDetrConfig(**SIZES),
    "anchor, plain attention": AnchorDetrConfig(**SIZES, attention="plain", patterns=1),
    "anchor, grid, 3 levels": AnchorDetrConfig(**{**SIZES, "encoder_layers": 2}, anchors="grid", levels=3),
    "anchor, class embeddings": AnchorDetrConfig(**SIZES, patterns=2),
    "anchor, 3 groups": AnchorDetrConfig(**SIZES, patterns=2, groups=3),
}
VECTORS = torch.randn(CLASSES, 12, generator=torch.Generator().manual_seed(1))
EMBEDDINGS = {name: VECTORS for name in FORMS if "class embeddings" in name}
DENOISING = [name for name, config in FORMS.items() if config.untold is None]
TWO_STAGE = [name for name, config in FORMS.items() if getattr(config, "two_stage", config.name == "dino")]
GROUPED = [name for name, config in FORMS.items() if getattr(config, "groups", 1) > 1]
ANCHORS = {
    DetrConfig: None,
    ConditionalDetrConfig: 2,
    AnchorDetrConfig: 2,
}  # numbers of an anchor, where they are not 4, or 2 of plain points


def test_every_host_is_here():
    assert {config.name for config in FORMS.values()} == set(HOSTS)


def detector(form: str, seed: int = 0):
    """A tiny detector whose every layer matters: heads that start at zero are shaken."""
    torch.manual_seed(seed)
    model = build_detector(FORMS[form], BackboneConfig("small", weights="none"), CLASSES, EMBEDDINGS.get(form))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def images(*sizes: tuple[int, int], canvas: tuple[int, int] = (64, 96)) -> Images:
    """Random images, each the same whatever its neighbours and the canvas."""
    pixels = torch.zeros(len(sizes), 3, *canvas)
    padding = torch.ones(len(sizes), *canvas, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        pixels[i, :, :h, :w] = torch.randn(3, h, w, generator=torch.Generator().manual_seed(h * w))
        padding[i, :h, :w] = False
    return Images(pixels, padding if padding.any() else None)


def objects(*counts: int) -> list[Target]:
    rng = torch.Generator().manual_seed(7)
    return [
        Target(torch.randint(0, CLASSES, (m,), generator=rng), 0.2 + 0.4 * torch.rand(m, 4, generator=rng), image_id=i)
        for i, m in enumerate(counts)
    ]


def known(targets: list[Target], seed: int = 0, isolated: bool | torch.Tensor = True, **noise) -> Known:
    rng = [torch.Generator().manual_seed(seed * 100 + i) for i in range(len(targets))]
    return Known(noise_targets(targets, NoiseConfig(**{"groups": 3} | noise), CLASSES, rng), isolated)


def matching_part(output):
    _, matching = output.split()
    return matching


def same(a, b, **tolerance):
    torch.testing.assert_close(a.logits, b.logits, **tolerance)
    torch.testing.assert_close(a.boxes, b.boxes, **tolerance)


def different(a, b):
    return (a.logits - b.logits).abs().max() > 1e-3


BATCH = ((64, 96), (40, 56))
UNMOVED = (
    "k.bias",
    "k_row.bias",
    "k_column.bias",
    "label.table.unknown",
)  # a softmax ignores the one; matching queries of some hosts are told nothing


@pytest.mark.parametrize("form", FORMS)
def test_shapes_of_the_output(form):
    told = known(objects(2, 4)) if form in DENOISING else None
    output = detector(form)(images(*BATCH), told)
    matching = QUERIES * max(1, getattr(FORMS[form], "patterns", 0))
    width = matching + (3 * 4 if told else 0)
    assert output.logits.shape == (3, 2, width, CLASSES + output.softmax) and output.classes == CLASSES
    assert output.scores().shape == (2, width, CLASSES)
    assert output.boxes.shape == (3, 2, width, 4)
    numbers = ANCHORS.get(type(FORMS[form]), 4 if form in DENOISING + TWO_STAGE else 2)
    assert (output.anchors is None) if numbers is None else (output.anchors.shape == (2, width, numbers))
    assert (output.layout.width, output.layout.queries) == (width, matching)
    assert output.boxes.min() >= 0 and output.boxes.max() <= 1
    assert (output.proposals is not None) == (form in TWO_STAGE)
    denoising, matching_output = output.split()
    assert denoising.proposals is None and matching_output.proposals is output.proposals
    assert denoising.logits.shape[2] == width - matching and matching_output.boxes.shape[2] == matching


@pytest.mark.parametrize("counts", [(2, 4), (3, 0), (0, 0)], ids=["objects", "an empty image", "an empty batch"])
@pytest.mark.parametrize("denoise", [True, False], ids=["denoising", "baseline"])
@pytest.mark.parametrize("form", FORMS)
def test_backward_reaches_every_parameter(form, denoise, counts):
    if denoise and form not in DENOISING:
        pytest.skip("plain Deformable DETR has no denoising")
    model, targets = detector(form).train(), objects(*counts)
    told = known(targets) if denoise else None
    wanted = Wanted(targets, told.denoise.assignment(), 3) if told else Wanted(targets)
    told = replace(told or Known(), every_group=True)
    losses = Criterion(LossConfig(), Matcher(MatchConfig()))(model(images(*BATCH), told), wanted, sum(counts))
    losses.total.backward()
    assert losses.total.isfinite()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing
    if denoise and counts == (2, 4):  # all but a few move something, too
        still = [name for name, parameter in model.named_parameters() if not parameter.grad.abs().sum() > 0]
        assert [name for name in still if not name.endswith(UNMOVED)] == []


@pytest.mark.parametrize("form", DENOISING)
def test_nothing_leaks_into_the_matching_part(form):
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    alone = model(batch)
    for seed in (0, 1):
        same(matching_part(model(batch, known(targets, seed))), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", DENOISING)
def test_negatives_are_queries_like_others(form):
    """Contrastive denoising: positives see them, the matching part does not, and no neighbour has a part in it."""
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    told = known(targets, contrastive=True)
    noised = told.denoise
    assert noised.valid.shape == (2, 3 * 2 * 4) and noised.negative.sum(1).tolist() == [3 * 2, 3 * 4]
    denoising, matching = model(batch, told).split()
    same(matching, model(batch), rtol=1e-4, atol=1e-5)
    nothing = replace(noised, valid=noised.valid & ~noised.negative)
    (without, _), positive = model(batch, replace(told, denoise=nothing)).split(), noised.valid & ~noised.negative
    assert (denoising.logits - without.logits)[:, positive].abs().max() > 1e-3
    alone, _ = model(images(BATCH[0], canvas=BATCH[0]), known(targets[:1], contrastive=True)).split()
    torch.testing.assert_close(denoising.logits[:, 0, noised.valid[0]], alone.logits[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("counts", [(2, 4), (3, 0), (0, 0)], ids=["objects", "an empty image", "an empty batch"])
@pytest.mark.parametrize("form", DENOISING)
def test_negatives_are_taught_to_see_nothing(form, counts):
    """Their scores are to fall, of every class or for "no object", their boxes are not taught, and nothing else changes."""
    model, batch, targets = detector(form), images(*BATCH), objects(*counts)
    told = known(targets, contrastive=True)
    noised, output = told.denoise, model(batch, told)
    logits, boxes = output.logits.detach().requires_grad_(), output.boxes.detach().requires_grad_()
    output = replace(output, logits=logits, boxes=boxes)
    criterion, wanted = Criterion(LossConfig(), Matcher(MatchConfig())), Wanted(targets, noised.assignment(), 3)
    losses, without = (criterion(output, w, 6) for w in (wanted._replace(negatives=noised.negatives()), wanted))
    losses.total.backward()
    far = torch.nn.functional.pad(noised.negative, (0, output.layout.queries))  # B W
    classes = logits.grad[:, far][..., :CLASSES]
    assert (classes > 0).all() and not boxes.grad[:, far].any()
    if output.softmax:
        assert (logits.grad[:, far][..., -1] < 0).all()
    changed = {name for name, value in losses.parts.items() if value != without.parts[name]}
    assert changed == ({f"dn_cls_{i}" for i in range(3)} if sum(counts) else set())


@pytest.mark.parametrize("form", DENOISING)
def test_without_the_mask_it_leaks(form):
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    assert different(matching_part(model(batch, known(targets, isolated=False))), model(batch))


@pytest.mark.parametrize("form", DENOISING)
def test_each_image_may_have_its_own_mask(form):
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    mixed = matching_part(model(batch, known(targets, isolated=torch.tensor([False, True]))))
    for whole, b in (known(targets, isolated=False), 0), (known(targets), 1):
        alike = matching_part(model(batch, whole))
        torch.testing.assert_close(mixed.logits[:, b], alike.logits[:, b], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(mixed.boxes[:, b], alike.boxes[:, b], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", DENOISING)
def test_matching_queries_look_for_the_class_that_they_are_told(form):
    """Another class gives another output, and each image listens to its own, with and without denoising beside it."""
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    labels = [torch.tensor(pair) for pair in ((1, 2), (1, 3))]
    one, other = (model(batch, Known(label=label)) for label in labels)
    assert different(one, model(batch))
    torch.testing.assert_close(one.logits[:, 0], other.logits[:, 0], rtol=1e-4, atol=1e-5)
    assert (one.logits[:, 1] - other.logits[:, 1]).abs().max() > 1e-3
    told = known(targets).denoise
    (denoising, matching), (without, _) = model(batch, Known(told, label=labels[0])).split(), model(batch, Known(told)).split()
    same(matching, one, rtol=1e-4, atol=1e-5)
    assert different(denoising, without)  # denoising queries see the matching ones


@pytest.mark.parametrize("form", DENOISING)
def test_backward_reaches_every_parameter_where_labels_are_told(form):
    model, targets = detector(form).train(), objects(2, 4)
    output = model(images(*BATCH), Known(label=torch.tensor([1, 2]), every_group=True))
    Criterion(LossConfig(), Matcher(MatchConfig()))(output, Wanted(targets), 6).total.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_points_cannot_be_told_a_class():
    with pytest.raises(ValueError, match="nothing can be told"):
        detector("deformable, points")(images(*BATCH), Known(label=torch.tensor([1, 2])))


@pytest.mark.parametrize("form", DENOISING)
def test_groups_do_not_see_each_other(form):
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    told, other = known(targets, seed=0), known(targets, seed=1)
    first = slice(0, told.denoise.slots)
    told.denoise.labels[:, first], told.denoise.boxes[:, first] = (
        other.denoise.labels[:, first],
        other.denoise.boxes[:, first],
    )
    (before, _), (after, _) = model(batch, known(targets, seed=0)).split(), model(batch, told).split()
    slots, valid = told.denoise.slots, told.denoise.valid
    moved = (before.logits - after.logits).abs().amax((0, 3))  # B K
    assert moved[:, :slots][valid[:, :slots]].max() > 1e-3
    assert moved[:, slots:][valid[:, slots:]].max() < 1e-4


def all_groups(form, targets=None, seed=0):
    """What a training tells."""
    return replace(known(targets, seed) if targets else Known(), every_group=True)


@pytest.mark.parametrize("form", GROUPED)
def test_groups_of_matching_queries_do_not_see_each_other(form):
    """Group DETR: the first group answers in training as alone, and the others move neither it nor what is denoised."""
    model, batch, targets = detector(form), images(*BATCH), objects(2, 4)
    alone, every = model(batch), model(batch, all_groups(form))
    count, groups = alone.logits.shape[2], FORMS[form].groups
    assert every.logits.shape[2] == groups * count and every.layout.matching_groups == groups
    assert different(replace(alone, logits=every.logits[:, :, count : 2 * count]), alone)
    torch.testing.assert_close(every.logits[:, :, :count], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(every.boxes[:, :, :count], alone.boxes, rtol=1e-4, atol=1e-5)
    (denoising, _), (beside, matching) = model(batch, known(targets)).split(), model(batch, all_groups(form, targets)).split()
    valid = known(targets).denoise.valid
    torch.testing.assert_close(beside.logits[:, valid], denoising.logits[:, valid], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(matching.logits, every.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["dab", "deformable, dense decoder", "sam", "anchor"])
def test_groups_that_would_all_be_the_same_are_refused(form):
    """On a grid, where anchors alone tell queries apart, they would begin alike and learn alike."""
    replace(FORMS[form], groups=2)
    replace(FORMS[form], anchors="grid")
    with pytest.raises(FieldErrors, match="groups must be 1 .* anchors: grid"):
        replace(FORMS[form], groups=2, anchors="grid")


@pytest.mark.parametrize("form", GROUPED)
def test_each_group_of_matching_queries_finds_every_object(form):
    model, targets = detector(form), objects(2, 4)
    output = model(images(*BATCH), all_groups(form))
    for match in Matcher(MatchConfig())(output, targets):
        groups = match.query // (output.logits.shape[2] // FORMS[form].groups)
        for image, target in enumerate(targets):
            for group in range(FORMS[form].groups):
                found = match.object[(match.image == image) & (groups == group)]
                assert sorted(found.tolist()) == list(range(len(target.labels)))


@pytest.mark.parametrize("form", FORMS)
def test_an_image_does_not_depend_on_its_neighbours_or_their_padding(form):
    model, targets = detector(form), objects(2, 4)
    denoise = form in DENOISING
    together = model(images(*BATCH), known(targets) if denoise else None)
    for canvas in ((64, 64), BATCH[1]):  # with less padding, and with none
        alone = model(images(BATCH[1], canvas=canvas))
        torch.testing.assert_close(matching_part(together).boxes[:, 1:], alone.boxes, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(matching_part(together).logits[:, 1:], alone.logits, rtol=1e-3, atol=1e-4)
    if denoise:  # neither do its denoising queries depend on how many objects the others have
        few = [Target(t.labels[:2], t.boxes[:2], t.image_id) for t in targets]
        (ours, _), (theirs, _) = model(images(*BATCH), known(few)).split(), together.split()
        told = known(targets).denoise
        one = known(few).denoise
        rows, columns = one.valid[0].nonzero()[:, 0], told.valid[0].nonzero()[:, 0]
        torch.testing.assert_close(ours.logits[:, 0, rows], theirs.logits[:, 0, columns], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_without_known_there_are_only_matching_queries(form):
    model = detector(form)
    widths = []
    model.decoder.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    output = model(images(*BATCH))
    assert output.layout.denoising == 0
    assert widths == [output.layout.queries]


@pytest.mark.parametrize("form", DENOISING)
def test_denoising_adds_no_parameters_and_leaves_no_trace(form):
    model, targets = detector(form), objects(2, 4)
    keys = list(model.state_dict())
    before = model(images(*BATCH))
    clean = [t.boxes.clone() for t in targets]
    model(images(*BATCH), known(targets))
    assert list(model.state_dict()) == keys
    assert all(torch.equal(a, t.boxes) for a, t in zip(clean, targets, strict=True))
    same(model(images(*BATCH)), before, rtol=0, atol=0)


def test_points_refuse_to_denoise():
    with pytest.raises(ValueError, match="noise: null"):
        detector("deformable, points")(images(*BATCH), known(objects(2, 4)))


class Alone(torch.nn.Module):
    """One image without padding, tensors in and tensors out: what an export holds."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(Images(pixels))
        return output.logits, output.boxes


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_detector_computes_the_same(form):
    model, one, other = Alone(detector(form)), torch.rand(1, 3, 64, 96), torch.randn(1, 3, 64, 96)
    exported = torch.export.export(model, (one,), strict=False).module()  # the default since 2.8
    torch.testing.assert_close(exported(other), model(other))
