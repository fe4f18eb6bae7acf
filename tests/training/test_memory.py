"""Memory is bounded: by steps, however many there are, and by the objects of an image, however many it has."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from dndetr.models.denoising.noise import NoiseConfig
from dndetr.tasks import Detection
from dndetr.training.learner import Learner
from tests.data.coco_files import image, item, write_split
from tests.training.tiny import CLASSES, batch, frozen_statistics, tiny_config, tiny_model

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
STEPS, EPOCHS, BATCH = 500, 10, 4

TRAINING = """
import gc, json, resource, sys
from dataclasses import replace
import torch
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from tests.training.tiny import resolved, tiny_config

step, seen = Learner.step, {}

def measured(self, parts, task):
    losses = step(self, parts, task)
    if self.step_count in (100, 500):
        gc.collect()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        seen[self.step_count] = peak, sum(isinstance(each, torch.Tensor) for each in gc.get_objects())
    return losses

Learner.step = measured
config = tiny_config(sys.argv[1], epochs=10, batch_size=4, save_steps=20)
train(resolved(replace(config, eval=replace(config.eval, every=1000))), sys.argv[2])
print(json.dumps([seen[100], seen[500]]))
"""


def test_the_peak_of_memory_does_not_grow_over_500_steps(tmp_path):
    """A whole training in a process of its own, with up to 30 objects an image, checkpoints and epochs in between."""
    images = [image(i) for i in range(STEPS // EPOCHS * BATCH)]
    boxes = [(i, [n % 30, n % 10, 8, 9]) for i in range(len(images)) for n in range(i % 31)]
    objects = [item(k, i, box, category=(3, 7)[k % 2]) for k, (i, box) in enumerate(boxes, start=1)]
    root = write_split(tmp_path / "data", "train", images, objects)
    write_split(root, "val", images[:2], objects[:1])
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(root), str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (peak, tensors), (later_peak, later_tensors) = json.loads(done.stdout.splitlines()[-1])
    assert later_peak - peak < 20  # MiB; what is kept of every step or epoch adds up to more
    assert later_tensors == tensors


CROWD = 1000


def test_a_thousand_objects_in_one_image_train():
    config = tiny_config(lr=1e-3)
    learner = Learner(config, frozen_statistics(tiny_model(config)), CPU, steps_per_epoch=10)
    widths = []
    learner.model.decoder.register_forward_pre_hook(lambda module, args: widths.append(args[0].content.shape[1]))
    task = Detection(NoiseConfig(), CLASSES, seed=0)
    images, targets = batch([CROWD, 2])
    losses = [learner.step([(images, targets)], task) for _ in range(10)]
    assert set(widths) == {2000 + config.host.queries}
    assert all(value.isfinite() for named in losses for value in named.values())
    assert losses[-1]["dn_loss"] < losses[0]["dn_loss"] and losses[-1]["loss"] < losses[0]["loss"]


def test_a_crowded_image_leaves_its_neighbours_as_they_are():
    """Their denoising queries, and what these add to the losses: only the normaliser knows of the crowd."""
    config = tiny_config()
    model = tiny_model(config).eval()
    task = Detection(NoiseConfig(groups=2, max_queries=60), CLASSES, seed=0)
    images, targets = batch([CROWD, 3])
    few = replace(targets[0], labels=targets[0].labels[:1], boxes=targets[0].boxes[:1])
    found = []
    for first in (targets[0], few):
        known, wanted = task([first, targets[1]])
        output, _ = model(images, known).split()
        mine = wanted.known.image == 1
        query, object_ = wanted.known.query[mine], wanted.known.object[mine]
        found.append((known.denoise.boxes[1, query], known.denoise.labels[1, query], object_, output.logits[:, 1, query]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert wanted.groups == 2
