"""`dndetr analyze cost`: the counts of dndetr info, and steps of the learner of dndetr train."""

import pytest

from dndetr.analysis import cost
from dndetr.analysis.cost import GROUPS, analyze_cost
from dndetr.info import info
from dndetr.resolve import load_preset

SMALL = ["host.queries=9", "host.hidden=16", "host.heads=2", "host.ffn=16", "host.encoder_layers=1", "host.decoder_layers=1"]


def words(text: str) -> list[str]:
    """Lines with single spaces."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_counts_are_those_of_info():
    (counted,) = analyze_cost(["dn-dab-tiny"], SMALL, steps=0)
    assert counted.size == (96, 96)
    theirs = info(load_preset("dn-dab-tiny", SMALL), *counted.size)
    assert counted.parameters == theirs.parameters
    assert counted.inference == counted.forward[0] == theirs.inference
    assert counted.training[0] == theirs.training
    assert counted.training[5] == theirs.denoising
    for counts in (counted.forward, counted.training):
        assert list(counts) == list(GROUPS)
        assert sorted(counts.values()) == list(counts.values())
        assert counts[10] > counts[5] > counts[1] > counts[0]


def test_a_preset_without_denoising_is_counted_with_that_of_the_paper():
    with_noise, without = analyze_cost(["dn-dab-tiny", "dab-tiny"], SMALL, steps=0, size=(64, 80))
    assert with_noise.size == (64, 80)
    assert with_noise._replace(name="") == without._replace(name="")


def test_points_cannot_be_denoised(main):
    done = main("analyze", "cost", "--preset", "deform-tiny", "host.query=point", *SMALL)
    assert (done.code, done.err) == (0, "")
    assert "forward, 5 groups -" in words(done.out)
    assert "The queries of deform-tiny are points, which cannot be denoised." in done.out
    assert "ratio" not in done.out


def test_steps_are_timed_alternately_without_and_with_denoising(main, monkeypatch):
    seconds, seen = iter([9.0, 9.0, 1.0, 2.0, 3.0, 2.0, 2.0, 5.0]), []

    class Learner(cost.Learner):
        def step(self, parts, task):
            seen.append((task.noise and task.noise.groups, parts[0][0].pixels.shape))
            return super().step(parts, task)

    def clock(action, device):
        action()
        return next(seconds)

    monkeypatch.setattr(cost, "Learner", Learner)
    monkeypatch.setattr(cost, "timed", clock)
    done = main("analyze", "cost", "--preset", "dn-dab-tiny", "--steps", 3, "--size", 32, 48, "--batch", 1, *SMALL)
    assert (done.code, done.err) == (0, "")
    assert seen == [(None, (1, 3, 32, 48)), (5, (1, 3, 32, 48))] * 4
    lines = words(done.out)
    assert "step without denoising 2.000 s" in lines  # the median without the first step, of 1, 3 and 2
    assert "step with denoising 2.000 s" in lines
    assert "ratio 1.00 x" in lines
    assert "94.4 and 94.6" in done.out


@pytest.mark.parametrize(
    ("name", "overrides", "size"),
    [
        ("dn-dab-r50-50ep", [], (800, 1066)),
        ("dn-dab-tiny", [], (96, 96)),
        ("dn-dab-r50-50ep", ["data.max_size=900"], (800, 900)),
    ],
)
def test_the_usual_size_is_that_of_an_evaluation(name, overrides, size):
    assert cost.usual_size(load_preset(name, overrides).config) == size


def test_an_unknown_preset_is_told(main):
    done = main("analyze", "cost", "--preset", "dn-dab-tinny")
    assert done.code == 2
    assert "did you mean dn-dab-tiny" in done.err
