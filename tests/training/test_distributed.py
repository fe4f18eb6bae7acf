"""Two processes over gloo: the same losses and weights as one process with the whole batch."""

import json
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp

from dncli.console import UserError
from dncli.data.coco import load_split
from dncli.tasks import Detection
from dncli.training import distributed
from dncli.training.commands import evaluate_command
from dncli.training.evaluate import METRICS
from dncli.training.learner import Learner
from dncli.training.loop import train
from dncli.training.prepare import load_validation
from models.denoising.noise import NoiseConfig
from tests.training.tiny import CLASSES, batch, frozen_statistics, halves, resolved, tiny_config, tiny_model, write_dataset

STEPS = 3
COUNTS = [3, 1, 0, 0], [0, 0, 2, 1], [2, 0, 1, 3]  # of four images, two a process: at times one process has no objects


def steps(world_parts: int, index: int, accumulate: int = 1) -> dict[str, object]:
    """Train some steps on this process's share; its losses, averaged over processes, and the weights in the end."""
    config = tiny_config(lr=1e-3, accumulate=accumulate)
    model = frozen_statistics(tiny_model(config))
    learner = Learner(config, model, torch.device("cpu"), steps_per_epoch=100)
    learner.parallel.train()
    for group in learner.optimizer.param_groups:
        group["eps"] = 1e-3  # else Adam makes full steps of gradients that are nothing but rounding
    losses = []
    for step in range(STEPS):
        images, targets = halves(*batch(COUNTS[step], seed=step), parts=world_parts)[index]
        parts = halves(images, targets, parts=accumulate)
        named = learner.step(parts, Detection(NoiseConfig(groups=2), CLASSES, seed=0))
        losses.append(dict(zip(named, distributed.all_mean(torch.stack(list(named.values()))), strict=True)))
    return {"losses": losses, "weights": dict(model.state_dict())}


def in_process(rank: int, port: int, out: str, root: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    with distributed.processes("cpu"):
        results = {accumulate: steps(2, rank, accumulate) for accumulate in (1, 2)}
        results["gathered"] = distributed.gather({"rank": rank})
        results["failure"] = failure()
        results["share"] = share(root)
        train(resolved(tiny_config(root, epochs=2)), f"{out}/run")
        torch.save(results, f"{out}/{rank}.pt")


def share(root: str) -> list[int]:
    """The images that this process evaluates."""
    config = tiny_config(root)
    return [
        t.image_id for _, targets in load_validation(config, load_split(root, "train").categories).batches for t in targets
    ]


def failure() -> str:
    try:
        distributed.on_main(refuse)
    except UserError as error:
        return str(error)
    return "none"


def refuse() -> None:
    raise UserError("no")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    root = write_dataset(out / "data", val=7)  # an odd number of images: the shares differ
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(in_process, args=(port, str(out), str(root)), nprocs=2)
    return out


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(folder, accumulate):
    first, second = (torch.load(folder / f"{rank}.pt")[accumulate] for rank in (0, 1))
    whole = steps(1, 0)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first["losses"], whole["losses"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first["weights"], whole["weights"], rtol=1e-4, atol=1e-5)


def test_what_processes_tell_each_other(folder):
    for rank in (0, 1):
        results = torch.load(folder / f"{rank}.pt")
        assert results["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert results["failure"] == "no"


def test_every_image_is_evaluated_by_one_process(folder):
    shares = [torch.load(folder / f"{rank}.pt")["share"] for rank in (0, 1)]
    assert sorted(map(len, shares)) == [3, 4]
    assert sorted(shares[0] + shares[1]) == [10 * i + 3 for i in range(7)]


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
