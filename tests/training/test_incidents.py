"""Steps that are not finite: nothing of them stays but a file, from which the place where they began is found again."""

import copy
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dndetr.training.epochs as epochs
import dndetr.training.incidents as incidents
import dndetr.training.loop as loop
from dndetr.console import UserError
from dndetr.data.loader import Packed
from dndetr.models.criterion import Criterion
from dndetr.models.denoising.layout import QueryLayout
from dndetr.models.structures import Output
from dndetr.settings import dump
from dndetr.training.checkpoint import load_checkpoint, save_checkpoint
from dndetr.training.incidents import replay
from dndetr.training.learner import Learner, NotFinite
from dndetr.training.loop import train
from dndetr.training.prepare import build_model
from dndetr.training.values import load_values, save_values
from tests.training.processes import GUARD, command, run
from tests.training.tiny import checkpoint, resolved, tiny_config, to_tree, with_train, write_dataset

ROOT = Path(__file__).resolve().parents[2]
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))  # 2 steps of 4 images an epoch


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Drawing curves takes most of the time of so small a run."""
    monkeypatch.setattr(epochs, "plot_run", lambda records, folder: None)


@pytest.fixture
def config(root):
    config = tiny_config(root, ema=0.5)
    return replace(config, host=replace(config.host, dropout=0.1))


@pytest.fixture
def spoil(monkeypatch):
    """`spoil({step: change})` has `change(learner, parts)` done before these steps; states before and after them are kept."""
    original, states = Learner.step, []

    def install(changes):
        def step(self, parts, task):
            if self.step_count + 1 not in changes:
                return original(self, parts, task)
            undo = changes[self.step_count + 1](self, parts)
            states.append(everything(self))
            try:
                return original(self, parts, task)
            finally:
                states.append(everything(self))
                if undo:
                    undo()

        monkeypatch.setattr(Learner, "step", step)
        return states

    return install


def everything(learner: Learner) -> dict[str, object]:
    """All that a step may change, but for the count of steps and the learning rate that follows from it."""
    state = learner.state()
    names = ("model", "ema", "scaler")
    moments = {"moments": state["optimizer"]["state"], "averaged": learner.ema.n_averaged}
    return copy.deepcopy({name: state[name] for name in names} | moments)


def pixel(learner, parts):
    """One channel of one pixel of the last image."""
    parts[-1][0].pixels[-1, 1, 3, 4] = NAN


def weight(learner, parts):
    where = learner.model.heads.box[0].layers[0].bias.data
    before, where[1] = where[1].clone(), INF

    def undo():
        where[1] = before

    return undo


def gradient(learner, parts):
    return learner.model.heads.cls[1].bias.register_hook(lambda gradient: gradient * NAN).remove


def loss(learner, parts, change=lambda total: total + INF):
    """A loss of which the gradient knows nothing."""
    criterion = learner.criterion

    def spoilt(*args):
        losses = criterion(*args)
        return losses._replace(total=change(losses.total))

    learner.criterion = spoilt

    def undo():
        learner.criterion = criterion

    return undo


def product(learner, parts):
    return loss(learner, parts, lambda total: total * NAN)


SPOILED = {
    pixel: (r"a prediction of decoder layer 0 for image \d+ is not finite", r"the pixels of image \d+ are not finite"),
    weight: ("a prediction of decoder layer 0", r"the weights themselves are not finite: heads.box.0.layers.0.bias"),
    gradient: ("the gradient is not finite", "everything is finite here"),
    loss: ("not finite: loss", "everything is finite here"),
    product: ("not finite: loss", "everything is finite here"),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("what", SPOILED, ids=lambda what: what.__name__)
def test_one_bad_step_is_passed_over_and_the_second_one_ends_the_run(config, tmp_path, spoil, caplog, what, accumulate):
    """Also of accumulated parts only the second one is bad (a pixel) and the first one was learned from already."""
    states = spoil({2: what, 3: what})
    config = with_train(config, skip_nonfinite=1, accumulate=accumulate, epochs=3)
    with pytest.raises(NotFinite) as ended:
        train(resolved(config), tmp_path / "run")
    reason, found = SPOILED[what]
    assert ended.value.code == 3 and len(ended.value.lines) == 1
    assert ended.match(rf"step 3: {reason}.* \(image ids (\d+, ){{3}}\d+\), no weight was changed; try a lower train.lr")
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("step 2: ") and "no weight was changed" in warning
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(states[3], states[2], rtol=0, atol=0, equal_nan=True)
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["skipped"] == 1
    assert all(math.isfinite(value) for value in record.values() if value is not None)
    last = load_checkpoint(tmp_path / "run", prefer="last.pt")
    assert (last.epoch, last.step, last.skipped) == (1, 2, 1)
    assert all(tensor.isfinite().all() for tensor in last.weights.values())
    for step, message in ((2, warning), (3, str(ended.value))):
        file = tmp_path / "run" / "nonfinite" / f"step_00000{step}_process_0.pt"
        assert f"dndetr doctor --replay {file} (the last good checkpoint is {tmp_path / 'run' / 'checkpoints'}/" in message
        lines = replay(file)
        assert lines[0].startswith(f"step {step} of epoch {(step + 1) // 2}, process 0: ")
        assert re.search(found, lines[-1]), lines


def test_a_run_ends_as_if_the_step_had_never_been_where_it_is_resumed(config, root, tmp_path, spoil, monkeypatch):
    """The checkpoint that the message names is whole, and has all steps before the bad one."""
    config = with_train(config, save_steps=1)
    with monkeypatch.context() as patch:
        train(resolved(config), tmp_path / "whole")
        original = Learner.step

        def step(self, parts, task):
            if self.step_count == 2:
                pixel(self, parts)
            return original(self, parts, task)

        patch.setattr(Learner, "step", step)
        with pytest.raises(NotFinite):
            train(resolved(config), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run", prefer="last.pt").step == 2
    train(resolved(config), None, resume=tmp_path / "run")
    ours, theirs = (load_checkpoint(tmp_path / name, prefer="last.pt") for name in ("run", "whole"))
    for part in ("model", "ema", "optimizer"):
        torch.testing.assert_close(getattr(ours, part), getattr(theirs, part), rtol=0, atol=0)


def test_an_epoch_without_a_finite_step_ends_the_run(config, tmp_path, spoil):
    spoil({1: pixel, 2: pixel})
    with pytest.raises(NotFinite, match="epoch 1: not one step had a finite loss"):
        train(resolved(with_train(config, skip_nonfinite=5)), tmp_path / "run")


# the place where it begins


def overflow(model: nn.Module, name: str) -> None:
    """Weights that are finite, and an output that is not."""
    module = model.get_submodule(name)
    for parameter in module.parameters():
        parameter.data = (parameter.data.sign() + 0.5).sign() * 3e38  # also where it was 0


@pytest.mark.parametrize(
    "name",
    [
        "backbone.stages.0.0",
        "backbone.stages.0.1",
        "neck.project.0.conv",
        "encoder.layers.0.attention.value",
        "encoder.layers.0.feed_forward.linear2",
        "encoder.layers.0.norm",
        "decoder.layers.0.self_attention.q",
        "decoder.layers.1.cross_attention.out",
        "decoder.layers.1.norm2",
        "decoder.locate.embed.layers.0",
        "heads.box.0.layers.0",
        "heads.cls.1",
    ],
)
def test_the_first_module_with_an_output_that_is_not_finite_is_named(config, tmp_path, monkeypatch, name):
    def begun(*args):
        model = build_model(*args)
        overflow(model, name)
        return model

    monkeypatch.setattr(loop, "build_model", begun)
    with pytest.raises(NotFinite, match="step 1: "):
        train(resolved(config), tmp_path / "run")
    found = replay(tmp_path / "run" / "nonfinite" / "step_000001_process_0.pt")[-1]
    assert f"the first module whose output is not finite is {name} (" in found


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        (
            1e7,
            "outputs and losses are finite, the gradient is not; nearest to the losses: decoder.layers.1.feed_forward.",
        ),
        (1.0, "outputs and losses are finite, and every gradient is, but the norm of all of them is not"),
    ],
)
def test_a_gradient_that_overflows_on_its_own_is_found(root, tmp_path, monkeypatch, weight, found):
    def begun(*args):
        """Tiny weights and huge ones behind them: their product is neither."""
        model = build_model(*args)
        feed_forward = model.decoder.layers[1].feed_forward
        for parameter in feed_forward.linear1.parameters():
            parameter.data *= 1e-36
        feed_forward.linear2.weight.data = feed_forward.linear2.weight.data.sign() * 3e38
        return model

    monkeypatch.setattr(loop, "build_model", begun)
    config = tiny_config(root)
    config = replace(config, loss=replace(config.loss, cls=weight))
    with pytest.raises(NotFinite, match="step 1: the gradient is not finite"):
        train(resolved(config), tmp_path / "run")
    assert found in replay(tmp_path / "run" / "nonfinite" / "step_000001_process_0.pt")[-1]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_replay_draws_the_same_numbers(config, tmp_path, spoil, monkeypatch, accumulate):
    """Losses that were finite come out the same to the last bit, with dropout, noise and parts."""
    spoil({2: gradient})
    with pytest.raises(NotFinite):
        train(resolved(with_train(config, accumulate=accumulate)), tmp_path / "run")
    file = tmp_path / "run" / "nonfinite" / "step_000002_process_0.pt"
    kept, again = load_values(file)[0]["losses"], []

    class Recorded(Criterion):
        def __call__(self, *args):
            again.append(super().__call__(*args))
            return again[-1]

    monkeypatch.setattr(incidents, "Criterion", Recorded)
    torch.manual_seed(99)  # of no account
    replay(file)
    assert len(again) == accumulate
    assert len(kept) == 14
    for name in kept.keys() - {"loss", "dn_loss"}:
        assert torch.equal(kept[name], torch.stack([losses.parts[name] for losses in again]).sum(0)), name
    assert torch.equal(kept["loss"], torch.stack([losses.total.detach() for losses in again]).sum(0))


def test_a_batch_that_cannot_be_kept_hides_nothing(config, tmp_path, spoil, monkeypatch):
    def full(path, values, previous=None):
        if path.parent.name == "nonfinite":
            raise OSError(28, "No space left on device")
        return save_values(path, values, previous)

    monkeypatch.setattr(incidents, "save_values", full)
    spoil({2: pixel})
    with pytest.raises(NotFinite, match="step 2: a prediction .*the batch could not be kept: No space left on device"):
        train(resolved(config), tmp_path / "run")


def test_other_files_are_not_replayed(tmp_path):
    save_checkpoint(tmp_path / "last.pt", checkpoint())
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "list.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    messages = {
        "last.pt": "not a batch that a training kept",
        "list.pt": "not a batch that a training kept",
        "empty.pt": "not a whole checkpoint",
        "none.pt": "No such file",
        ".": "Is a directory",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message) as error:
            replay(tmp_path / name)
        assert len(error.value.lines) == 1 and str(tmp_path / name) in str(error.value)


# the command


BAD = """
import math
from dndetr.training.learner import Learner
step = Learner.step
def spoilt(self, parts, task):
    if self.step_count == 1:
        parts[0][0].pixels[0, 0, 0, 0] = math.nan
    return step(self, parts, task)
Learner.step = spoilt
from dndetr.cli import main
main()
"""


def test_the_command_exits_with_3_and_one_sentence(config, tmp_path):
    (tmp_path / "tiny.yaml").write_text(dump(to_tree(config)))
    arguments = ["train", "--preset", "tiny.yaml", "--out", "run"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", BAD, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=GUARD
    )
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1 and ended.stderr.startswith("step 2: a prediction of decoder layer 0")
    assert "Traceback" not in ended.stderr + ended.stdout


def one_rank_is_bad(*arguments) -> None:
    """The command, but that process 1 meets a bad image in its second step, and in its fourth."""
    original = Learner.step

    def step(self, parts, task):
        if self.step_count in (1, 3) and os.environ["RANK"] == "1":
            pixel(self, parts)
        return original(self, parts, task)

    Learner.step = step
    command(*arguments)


def test_all_processes_pass_over_the_same_step_and_end_together(config, tmp_path):
    """Only process 1 has bad images: it keeps them, and the message that is shown names its images and its file."""
    (tmp_path / "tiny.yaml").write_text(dump(to_tree(with_train(config, epochs=3, skip_nonfinite=1, save_steps=1))))
    arguments = ("train", "--preset", tmp_path / "tiny.yaml", "--out", tmp_path / "run")
    first, second = run(tmp_path, 2, one_rank_is_bad, *arguments, first_ends_all=True)
    assert first.code == 3
    kept = tmp_path / "run" / "nonfinite"
    assert sorted(file.name for file in kept.iterdir()) == ["step_000002_process_1.pt", "step_000004_process_1.pt"]
    warning, end = first.err.splitlines()
    for message, step in ((warning, 2), (end, 4)):
        file = kept / f"step_00000{step}_process_1.pt"
        ids = [str(i) for part in load_values(file)[0]["parts"] for _, i, _ in Packed(*part).images]
        bad = re.match(rf"step {step}: a prediction of decoder layer 0 for image (\d+) is not finite", message)[1]
        assert bad in ids
        assert f"(image ids {', '.join(ids)})" in message
        assert f"dndetr doctor --replay {file} " in message
        assert f"process 1: a prediction of decoder layer 0 for image {bad}" in replay(file)[0]
        assert f"the pixels of image {ids[-1]} are not finite" in replay(file)[-1]
    assert second.err == ""
    last = load_checkpoint(tmp_path / "run", prefer="last.pt")
    assert (last.step, last.skipped) == (3, 1)


def test_every_tensor_of_an_output_is_looked_at():
    """Also where a decoder started from, and what an encoder proposed; embeddings start from no place."""
    x = [torch.full((1, 1, 2, 4), float(i)) for i in range(5)]
    layout = QueryLayout(0, 0, 2)
    output = Output(x[0], x[1], x[2], layout, proposals=Output(x[3], x[4], None, layout))
    assert [int(tensor.max()) for tensor in incidents.tensors([output])] == [0, 1, 2, 3, 4]
