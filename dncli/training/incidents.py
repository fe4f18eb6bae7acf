"""Steps whose loss or gradient was not finite: kept in a file, and computed again to see where it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dndetr.config import Config
from dndetr.console import UserError
from dndetr.data.coco import Categories
from dndetr.data.loader import Packed, Part, packed, unpacked
from dndetr.labels.embeddings import stored_embeddings
from dndetr.models import native
from dndetr.models.criterion import Criterion
from dndetr.models.hosts import build_detector
from dndetr.models.matcher import Matcher
from dndetr.models.structures import Output
from dndetr.resolve import from_tree, to_tree
from dndetr.tasks import Task, build_task
from dndetr.training import distributed
from dndetr.training.checkpoint import load_weights
from dndetr.training.learner import Incident, not_finite, seed_step
from dndetr.training.precision import autocast, check_precision, in_fp32
from dndetr.training.prepare import Data, shorten
from dndetr.training.run import Run
from dndetr.training.values import load_values, save_values

KIND = "dndetr incident 3"


def keeper(config: Config, data: Data, run: Run) -> Callable[[Incident], str]:
    """What a learner tells its incidents to: it keeps them in the run's folder, and says in a few words where.

    Of several processes those keep their share whose loss it was, or all where it was the gradient.
    """

    def keep(incident: Incident) -> str:
        anyones = any(distributed.gather(incident.ours))
        if anyones and not incident.ours:
            return ""
        rank = distributed.rank()
        path = run.nonfinite / f"step_{incident.step:06d}_process_{rank}.pt"
        values = {
            "kind": KIND,
            "step": incident.step,
            "epoch": (incident.step - 1) // len(data.batches) + 1,
            "rank": rank,
            "reason": incident.reason,
            "losses": {name: value.cpu() for name, value in incident.losses.items()},
            "parts": [tuple(packed(part)) for part in incident.parts],
            "objects": incident.objects,
            "model": incident.model.state_dict(),
            "config": to_tree(config),
            "categories": (data.categories.ids, data.categories.names),
            "checkpoint": str(run.last),
        }
        try:
            run.nonfinite.mkdir(exist_ok=True)
            save_values(path, values)
        except OSError as error:
            return f"the batch could not be kept: {error.strerror or error}"
        return f"look into it with: dndetr doctor --replay {path} (the last good checkpoint is {run.last})"

    return keep


def replay(path: str | Path) -> list[str]:
    """Compute a kept step again on this machine; what it was and what was found, line by line. UserError for other files."""
    values, _ = load_values(Path(path))
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise UserError(f"{path}: not a batch that a training kept (nonfinite/*.pt in a run folder)")
    config = from_tree(values["config"], str(path))
    with distributed.processes("auto") as device:
        check_precision(config, device)
        native.choose(config.op)
        categories = Categories.named(dict(zip(*values["categories"], strict=True)))
        model = build_detector(config.host, config.backbone, len(categories), stored_embeddings(values["model"]))
        load_weights(model, values["model"], path)
        parts = [unpacked(Packed(*part)) for part in values["parts"]]
        lines = [
            f"step {values['step']} of epoch {values['epoch']}, process {values['rank']}: {values['reason']}",
            f"images: {', '.join(str(target.image_id) for _, targets in parts for target in targets)}",
            f"the last good checkpoint then: {values['checkpoint']}",
        ]
        task = build_task(config, categories).at(values["epoch"])
        found = findings(values, parts, config, task, model.to(device).train(), device)
        return [*lines, f"computed again on {device.type} in {config.train.precision}: {found}"]


def findings(
    values: dict[str, Any], parts: list[Part], config: Config, task: Task, model: nn.Module, device: torch.device
) -> str:
    """The first place where something is not finite, in the order of the computation."""
    spoiled = [name for name, tensor in model.state_dict().items() if not finite(tensor)]
    if spoiled:
        return f"the weights themselves are not finite: {shorten(spoiled)}"
    criterion = Criterion(config.loss, Matcher(config.match))
    seed_step(config.train.seed, values["step"] - 1, values["rank"])
    objects = torch.tensor(values["objects"], device=device)
    for images, targets in parts:
        images, targets = images.to(device), [target.to(device) for target in targets]
        for pixels, target in zip(images.pixels, targets, strict=True):
            if not finite(pixels) or not finite(target.boxes):
                return f"the {'boxes' if finite(pixels) else 'pixels'} of image {target.image_id} are not finite"
        known, wanted = task(targets)
        with watching(model) as seen, autocast(config.train.precision, device):
            output = model(images, known)
        if seen:
            return f"the first module whose output is not finite is {seen[0]}"
        losses = criterion(in_fp32(output), wanted, *objects)
        if bad := not_finite(losses.parts):
            return f"every module's output is finite, these losses are not: {shorten(bad)}"
        with gradients(model) as seen:
            losses.total.backward()
        if seen:
            return f"outputs and losses are finite, the gradient is not; nearest to the losses: {shorten(seen)}"
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if not norm.isfinite():
        return "outputs and losses are finite, and every gradient is, but the norm of all of them is not"
    return "everything is finite here: the fault needs the machine, the precision or the number of processes of the training"


@contextmanager
def gradients(model: nn.Module) -> Iterator[list[str]]:
    """The names of parameters whose gradients are not finite, those nearest to the losses first."""
    seen: list[str] = []

    def look(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: None if finite(gradient) else seen.append(name)

    with ExitStack() as hooks:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hooks.enter_context(parameter.register_hook(look(name)))
        yield seen


@contextmanager
def watching(model: nn.Module) -> Iterator[list[str]]:
    """The names of modules whose outputs are not finite, in the order in which they are done: the innermost first."""
    seen: list[str] = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(finite(tensor) for tensor in tensors(output)):
                seen.append(f"{name or 'the detector'} ({type(module).__name__})")

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_hook(look(name)))
        yield seen


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in an output, however it is packed."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Output):
        yield from tensors((value.logits, value.boxes, value.anchors, value.proposals))
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors(inner)


def finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
