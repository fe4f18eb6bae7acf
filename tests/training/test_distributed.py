"""Two and four processes over gloo: the same losses and weights as one process with the whole batch."""

import json
import os

import pytest
import torch

from dndetr.console import UserError
from dndetr.data.coco import load_split
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.tasks import Detection
from dndetr.training import distributed
from dndetr.training.commands import evaluate_command
from dndetr.training.evaluate import METRICS
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from dndetr.training.prepare import load_validation
from tests.data.coco_files import at
from tests.training.processes import run
from tests.training.tiny import CLASSES, batch, frozen_statistics, halves, resolved, tiny_config, tiny_model, write_dataset

COUNTS = [3, 1, 0, 0], [0, 0, 2, 1], [0, 0, 0, 0], [2, 0, 1, 3]  # objects of four images: at times a process has none, or all


def steps(world_parts: int, index: int, accumulate: int = 1) -> dict[str, object]:
    """Train some steps on this process's share; its losses, averaged over processes, and the weights in the end."""
    config = tiny_config(lr=1e-3, accumulate=accumulate)
    model = frozen_statistics(tiny_model(config))
    learner = Learner(config, model, torch.device("cpu"), steps_per_epoch=100)
    learner.parallel.train()
    for group in learner.optimizer.param_groups:
        group["eps"] = 1e-3  # else Adam makes full steps of gradients that are nothing but rounding
    losses = []
    for step in range(len(COUNTS)):
        images, targets = halves(*batch(COUNTS[step], seed=step), parts=world_parts)[index]
        parts = halves(images, targets, parts=accumulate)
        named = learner.step(parts, Detection(NoiseConfig(groups=2), CLASSES, seed=0))
        losses.append(dict(zip(named, distributed.all_mean(torch.stack(list(named.values()))), strict=True)))
    return {"losses": losses, "weights": dict(model.state_dict())}


def in_process(out: str, root: str) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with distributed.processes("cpu"):
        results = {accumulate: steps(world, rank, accumulate) for accumulate in (1, 2) if world * accumulate <= 4}
        results["gathered"] = distributed.gather({"rank": rank})
        results["failures"] = [failure(distributed.on_main), failure(distributed.together)]
        results["share"] = share(root)
        if world == 2:
            train(resolved(tiny_config(root, epochs=2)), f"{out}/run")
        torch.save(results, f"{out}/{world}_{rank}.pt")


def share(root: str) -> list[int]:
    """The images that this process evaluates."""
    config = tiny_config(root)
    return [
        t.image_id for _, targets in load_validation(config, load_split(at(root), "train").categories).batches for t in targets
    ]


def failure(shared) -> str:
    try:
        shared(refuse)
    except distributed.Agreed as error:
        return str(error)
    return "none"


def refuse() -> None:
    raise UserError(f"{distributed.rank()} says no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("several")
    root = write_dataset(out / "data", val=7)  # an odd number of images: the shares differ
    for world in (2, 4):
        ended = run(out, world, in_process, str(out), str(root))
        assert [each.code for each in ended] == [0] * world, ended
    return out


def results(folder, world):
    return [torch.load(folder / f"{world}_{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (2, 2), (4, 1)])
def test_several_processes_train_like_one(folder, world, accumulate):
    first, *others = (each[accumulate] for each in results(folder, world))
    whole = steps(1, 0)
    for other in others:
        torch.testing.assert_close(first, other, rtol=0, atol=0)
    torch.testing.assert_close(first["losses"], whole["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["weights"], whole["weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_what_processes_tell_each_other(folder, world):
    for found in results(folder, world):
        assert found["gathered"] == [{"rank": rank} for rank in range(world)]
        assert found["failures"] == ["0 says no", "\n".join(f"{rank} says no" for rank in range(world))]


@pytest.mark.parametrize(("world", "sizes"), [(2, [4, 3]), (4, [2, 2, 2, 1])])
def test_every_image_is_evaluated_by_one_process(folder, world, sizes):
    shares = [found["share"] for found in results(folder, world)]
    assert [len(share) for share in shares] == sizes
    assert sorted(sum(shares, [])) == [10 * i + 3 for i in range(7)]


def test_a_run_of_two_processes_counts_every_image_once(folder):
    """One process evaluates the best epoch to the same numbers, so the two had the same weights and all images."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    detections = json.loads((folder / "run" / "eval" / "detections.json").read_text())
    assert len(detections) == 7 * 20
    best = max(lines, key=lambda line: line["ap"])
    found = evaluate_command(folder / "run", ["data.workers=0"])
    assert [found[name] for name in METRICS] == pytest.approx([best[name] for name in METRICS], abs=1e-6)
    assert (folder / "run" / "train.log").read_text().count("epoch 1/2") == 1
