"""Means, spreads and verdicts against numbers worked out by hand, over runs that were never trained."""

import csv
import math

import pytest

from dndetr.ablation.plan import read_study
from dndetr.ablation.report import show_results
from dndetr.ablation.results import compare, comparison, early, measure, paired, share, standard_error
from dndetr.ablation.runs import plan_trials
from tests.ablation.studies import fake, record, write_preset, write_study


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(name=None, seeds=2):
        write_preset(tmp_path)
        found = read_study(name or write_study(tmp_path))
        return found, plan_trials(found, "tiny.yaml" if name is None else found.preset, [], range(seeds), tmp_path / "out")

    return make


def aps_of(trials, aps):
    """Two epochs, of which the last one has this AP."""
    for trial, ap in zip(trials, aps, strict=True):
        if ap is not None:
            fake(trial, [ap - 0.1] * (trial.epochs - 1) + [ap])


class Trained:
    """As much of a trial as its curve needs."""

    def __init__(self, aps):
        self.epochs = len(aps)
        self.records = lambda: [record(epoch, ap, None) for epoch, ap in enumerate(aps, 1)]


class Given:
    """As much of a measured row as a comparison needs."""

    def __init__(self, *ap):
        self.ap = self.trials = ap


def test_the_standard_error_of_a_difference():
    # variances 1 and 4, of 3 and 2 values... sqrt(1 / 3 + 4.5 / 2)
    assert standard_error([1, 2, 3], [1, 4]) == pytest.approx(math.sqrt(1 / 3 + 4.5 / 2))
    assert math.isnan(standard_error([1], [1, 2]))


@pytest.mark.parametrize(
    ("above", "below", "shows"),
    [
        ((44, 46), (40, 42), "yes"),  # 4 apart; both variances are 2, so that twice the standard error is 2.83
        ((40, 42), (44, 46), "no"),
        ((42, 44), (40, 42), "within noise"),
        ((44,), (40, 42), "one seed"),
        ((), (40, 42), "not yet"),
    ],
)
def test_the_order_shows_where_the_difference_is_twice_its_standard_error(above, below, shows):
    assert comparison("", Given(*above), Given(*below)).shows == shows


@pytest.mark.parametrize(
    ("differences", "noise", "shows"),
    [
        ((3.0, 5.0), 2.0, "yes"),
        ((-3.0, -5.0), 2.0, "no"),
        ((-1.0, 3.0, 1.0), 4 / 3**0.5, "within noise"),
        ((2.0,), math.nan, "one seed"),
        ((), math.nan, "not yet"),
    ],
)
def test_pairs_of_runs_are_compared_seed_by_seed(differences, noise, shows):
    found = paired("a > b", differences, 1.5)
    assert found.shows == shows and found.noise == pytest.approx(noise, nan_ok=True) and found.paper == 1.5
    assert math.isnan(found.difference) if not differences else found.difference == sum(differences) / len(differences)


@pytest.mark.parametrize(("row", "shows"), [((40, 42), "no"), ((42, 44), "yes"), ((48, 50), "yes"), ((44,), "one seed")])
def test_a_row_is_as_good_as_another_unless_it_is_below_by_more_than_the_noise(row, shows):
    assert comparison("", Given(*row), Given(44, 46), equal=True).shows == shows


def test_rows_are_measured_over_their_finished_runs(study):
    found, trials = study(seeds=3)
    aps_of(trials, [0.44, 0.42, 0.46, 0.40, None, None])
    with_noise, none = measure(found, trials)
    assert with_noise.ap == pytest.approx([44, 46])
    assert none.ap == pytest.approx([42, 40])
    (only,) = compare(found, [with_noise, none], "tiny")
    assert only._replace(difference=0, noise=0) == ("With noise > none", 2.0, 0, 0, "yes")
    assert (only.difference, only.noise) == (pytest.approx(4), pytest.approx(2 * math.sqrt(2)))


def test_instability_is_averaged_over_epochs_2_to_6():
    records = [record(epoch, 0.1, float(epoch)) for epoch in range(1, 10)]
    assert early(records, "instability") == 4  # of 2, 3, 4, 5, 6
    assert math.isnan(early(records[:1], "instability"))
    assert math.isnan(early(records, "anchor_distance"))  # these runs have none


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ([0.2, 0.4, 0.5, 0.6], [0.1, 0.2, 0.3, 0.45], 2.5 / 4),  # half way between epochs 2 and 3
        ([0.45, 0.4, 0.4, 0.4], [0.1, 0.2, 0.3, 0.45], 1 / 4),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.45], None),
        ([0.1, 0.46], [0.1, 0.2, 0.3, 0.46], 2 / 4),  # a shorter training
        ([None, None], [0.1, 0.2], None),
        ([0.1, 0.2], [None, None], None),
    ],
)
def test_the_epochs_to_equal_ap_are_a_share_of_the_others_epochs(mine, theirs, expected):
    found = share(Trained(mine), Trained(theirs))
    assert found == (None if expected is None else pytest.approx(expected))


def test_shares_are_taken_seed_by_seed_and_only_where_every_seed_gets_there(study):
    found, trials = study(seeds=2)  # with noise 0, none 0, with noise 1, none 1
    for trial, aps in zip(trials, [[0.4, 0.4], [0.2, 0.5], [0.3, 0.3], [0.1, 0.3]], strict=True):
        fake(trial, aps)
    with_noise, none = measure(found, trials)
    assert none.shares(with_noise) == pytest.approx([(1 + 2 / 3) / 2, 1])
    assert with_noise.shares(none) == []  # 0.5 is not reached


def test_scales_are_said_to_rise_and_fall_from_their_best_value(study):
    found, trials = study("noise", seeds=2)
    aps = {"both 0.4": 0.5, "center_shift 0.2": 0.4, "center_shift 0.6": 0.6, "center_shift 1.0": 0.3, "box_scale 1.0": 0.7}
    for trial in trials:
        fake(trial, [0.0] * 11 + [aps.get(trial.row.name, 0.45) + 0.01 * trial.seed])
    claims = {c.claim: c.shows for c in compare(found, measure(found, trials), "dn-deform-tiny")}
    assert claims == {
        "center_shift: 0.6 > 0.2": "yes",
        "center_shift: 0.6 > 1": "yes",
        "box_scale: 0.4 > 0.2": "yes",
        "box_scale: 0.4 > 1": "no",
    }


def test_the_speedup_asks_whether_half_the_epochs_are_enough(study):
    found, trials = study("speedup", seeds=2)
    for trial in trials:
        fake(trial, [0.0] * (trial.epochs - 1) + [0.4 + 0.02 * found.rows.index(trial.row) + 0.001 * trial.seed])
    found_comparisons = compare(found, measure(found, trials), "dn-deform-tiny")
    assert [(c.claim, c.paper and round(c.paper, 1), c.shows) for c in found_comparisons] == [
        ("denoising, all epochs > baseline", 1.7, "yes"),
        ("denoising, half the epochs as good as baseline", -0.1, "yes"),
    ]


def test_results_are_shown_and_written(study, tmp_path, capsys):
    found, trials = study(seeds=2)
    aps_of(trials, [0.44, 0.42, 0.46, None])
    show_results(found, trials, "tiny", tmp_path / "out", "dndetr ablate mine.yaml")
    told = capsys.readouterr().out
    assert "45.0 ± 1.4" in told and "one seed" in told
    page = (tmp_path / "out" / "results.md").read_text()
    assert "| With noise | 2 | 45.0 ± 1.4 | 1.00 ± 0.00 | - |  | 44.0 |  |" in page
    assert "| none | 1 | 42.0 | 1.00 | - | - | 42.0 | -3.0 |" in page
    assert "dndetr ablate mine.yaml" in page
    runs = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["row"], r["seed"], r["ap"], r["best_ap"], r["paper_ap"]) for r in runs] == [
        ("With noise", "0", "44.0", "44.0", "44.0"), ("none", "0", "42.0", "42.0", "42.0"),
        ("With noise", "1", "46.0", "46.0", "44.0"),
    ]  # fmt: skip
    assert len((tmp_path / "out" / "curves.csv").read_text().splitlines()) == 1 + 3 * 2
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_epoch_may_be_an_earlier_one(study, tmp_path):
    found, trials = study(seeds=1)
    for trial in trials:
        fake(trial, [0.5, 0.4])
    show_results(found, trials, "tiny", tmp_path / "out", "")
    runs = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["best_ap"], r["ap"]) for r in runs] == [("50.0", "40.0")] * 2


def test_nothing_to_find_is_no_number(study, tmp_path, capsys):
    found, trials = study(seeds=1)
    for trial in trials:
        fake(trial, [None, None])
    show_results(found, trials, "tiny", tmp_path / "out", "")
    assert "| none | 1 | - | 1.00 | - | - | 42.0 |  |" in (tmp_path / "out" / "results.md").read_text()
