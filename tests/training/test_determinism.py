"""`--deterministic`: what it sets, what it names, and that a run gives the same bits again."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dndetr.models import native
from dndetr.models.backbone import BackboneConfig
from dndetr.models.denoising.noise import NoiseConfig
from dndetr.models.hosts import build_detector
from dndetr.tasks import Detection
from dndetr.training.determinism import WORKSPACES, be_deterministic
from dndetr.training.learner import Learner
from dndetr.training.loop import train
from dndetr.training.report import operator_row
from tests.hosts.test_contract import DENOISING, FORMS
from tests.training.faults import differences
from tests.training.tiny import CLASSES, batch, resolved, tiny_config, tiny_model, write_dataset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What the function changes of the process is put back."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    sdp = torch.backends.cuda
    before = sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.cudnn_sdp_enabled()
    with warnings.catch_warnings():
        yield
    torch.use_deterministic_algorithms(False)
    for enable, was in zip((sdp.enable_flash_sdp, sdp.enable_mem_efficient_sdp, sdp.enable_cudnn_sdp), before, strict=True):
        enable(was)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


TRAINING = """
import random, sys
import numpy, torch
for begin in (random.seed, torch.manual_seed, lambda seed: numpy.random.seed(seed % 2**32)):
    begin(hash("x"))
from dndetr.training.loop import train
from tests.training.faults import exacting
from tests.training.tiny import resolved
train(resolved(exacting(sys.argv[1], epochs=1)), sys.argv[2], deterministic=True)
"""


def test_two_processes_come_to_the_same_bits(tmp_path):
    """With two threads each, other hashes of strings and other states of all random generators."""
    root, runs = write_dataset(tmp_path / "data", train=12, val=4), [tmp_path / "one", tmp_path / "two"]
    few = {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "0"}  # threads that wait leave the cores to others
    for seed, run in enumerate(runs):
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(root), str(run)],
            cwd=ROOT,
            env={**os.environ, **few, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "equal bits need as many threads (2), the same kind of processor and versions" in done.stdout
    assert differences(*runs) == []


@pytest.mark.parametrize("form", FORMS)
def test_every_detector_trains_on_a_cpu_with_exact_parts_alone(form):
    assert len(be_deterministic(CPU)) == 1
    noise = NoiseConfig(groups=2) if form in DENOISING else None
    config, weights = replace(tiny_config(), host=FORMS[form], noise=noise), []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_detector(FORMS[form], BackboneConfig("small", weights="none"), CLASSES)
        learner = Learner(config, model, CPU, steps_per_epoch=10)
        learner.step([batch([3, 1])], Detection(noise, CLASSES, seed=0))
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_on_a_cpu_a_part_that_is_not_exact_would_raise():
    be_deterministic(CPU)
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))


def test_on_cuda_it_sets_what_it_can_and_names_the_rest(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    processes, attention = be_deterministic(CUDA)
    assert processes == "equal bits need as many processes, the same kind of GPU and versions"
    assert attention.startswith("the gradient of deformable attention is added up in any order")
    assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in WORKSPACES
    assert not torch.backends.cudnn.benchmark
    sdp = torch.backends.cuda
    assert not (sdp.flash_sdp_enabled() or sdp.mem_efficient_sdp_enabled() or sdp.cudnn_sdp_enabled())
    assert sdp.math_sdp_enabled()


def test_the_operator_gives_way_on_cuda_alone_and_the_header_tells(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda device: None)
    monkeypatch.setattr(native, "_choice", "auto")
    model = tiny_model(tiny_config())
    assert operator_row(model, CUDA) == operator_row(model, CPU) == [("sampling", "native operator")]
    be_deterministic(CUDA)
    assert operator_row(model, CUDA) == [("sampling", "PyTorch's grid_sample")]
    assert operator_row(model, CPU) == [("sampling", "native operator")]


@pytest.mark.parametrize(("given", "told"), [(":16:8", False), (":0:0", True)])
def test_a_workspace_of_the_users_own_is_left_and_told_of(monkeypatch, given, told):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    sentences = be_deterministic(CUDA)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == given
    assert any("CUBLAS_WORKSPACE_CONFIG" in sentence for sentence in sentences) == told


def test_where_pytorch_promises_nothing_that_is_said():
    assert be_deterministic(torch.device("mps")) == ["PyTorch promises nothing for mps"]


def test_the_run_writes_down_what_is_not_exact(tmp_path, monkeypatch):
    monkeypatch.setattr("dndetr.training.loop.be_deterministic", lambda device: ["the moon", "the tide"])
    root = write_dataset(tmp_path / "data", train=4, val=2)
    run = train(resolved(tiny_config(root, epochs=1)), tmp_path / "run", deterministic=True)
    said = (run / "train.log").read_text()
    assert "deterministic" in said and "the moon\n" in said and "the tide\n" in said


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_a_detector_without_deformable_attention_gives_the_same_bits():
    be_deterministic(CUDA)
    config, weights = replace(tiny_config(), host=FORMS["dab"]), []
    for _ in range(2):
        torch.manual_seed(0)
        model = build_detector(FORMS["dab"], BackboneConfig("small", weights="none"), CLASSES)
        learner = Learner(config, model, CUDA, steps_per_epoch=10)
        for seed in range(5):
            learner.step([batch([3, 1], seed)], Detection(NoiseConfig(), CLASSES, seed=0))
        weights.append([parameter.detach().cpu() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
