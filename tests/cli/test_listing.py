"""The list of presets: what stands beside what, and that it is read in a terminal of 80 columns."""

from dndetr.listing import TITLES, listing
from dndetr.resolve import Summary, list_presets

BASE = {"host.name": "dab_detr", "host.queries": 300}


def preset(name: str, noise: bool = True, table: int | None = None, also: tuple = (), ap: float = 0.0, **settings) -> Summary:
    paper = {} if table is None else {"table": table, "also": list(also), "ap": ap}
    own = {key.replace("__", "."): value for key, value in settings.items()}
    denoising = {"noise.groups": 5} if noise else {"noise": None}
    return Summary(name, paper, BASE | own | denoising | {f"paper.{key}": value for key, value in paper.items()})


def groups(*presets: Summary) -> dict[tuple[str, str], list[str]]:
    """(Title, detector) -> lines, without the spaces that align them."""
    found, title, host = {}, "", ""
    for line in listing(presets)[1:]:
        words = " ".join(line.split())
        if line.startswith("    "):
            found[title, host].append(words)
        elif line.startswith("  "):
            host = words
            found[title, host] = []
        elif line:
            title = words
    return found


def test_a_detector_stands_beside_itself_with_denoising():
    found = groups(preset("dn-a", table=1, ap=44.1), preset("a", noise=False, table=1, ap=42.2), preset("dn-b", host__x=1))
    assert found == {(TITLES[0], "dab_detr"): ["dn-b"], (TITLES[1], "dab_detr"): ["a 42.2 dn-a 44.1 +1.9"]}


def test_denoising_in_half_of_the_epochs_is_the_same_detector():
    half = preset("dn-a-25ep", table=7, ap=44.4, train__epochs=25, train__drop_epoch=20)
    whole = preset("a-50ep", noise=False, table=7, ap=44.5, train__epochs=50)
    assert groups(half, whole) == {(TITLES[7], "dab_detr"): ["a-50ep 44.5 dn-a-25ep 44.4 -0.1"]}


def test_what_differs_in_more_is_another_detector_and_less_ap_comes_first():
    wide = preset("dn-wide", table=2, ap=44.0, host__hidden=512)
    narrow = preset("narrow", noise=False, table=2, ap=43.0, host__hidden=64)
    assert groups(wide, narrow) == {(TITLES[2], "dab_detr"): ["narrow 43.0", "dn-wide 44.0"]}


def test_a_row_of_two_tables_stands_in_both():
    found = groups(preset("a", noise=False, table=1, also=(7,), ap=42.0))
    assert found == {(TITLES[table], "dab_detr"): ["a 42.0"] for table in (1, 7)}


def test_detectors_have_groups_of_their_own_in_order():
    found = groups(*(preset(f"x-{name}", table=3, ap=40, host__name=name) for name in ("sam", "anchor")))
    assert list(found.items()) == [((TITLES[3], "anchor"), ["x-anchor 40.0"]), ((TITLES[3], "sam"), ["x-sam 40.0"])]


def test_a_table_without_a_title_has_its_number():
    assert list(groups(preset("a", table=9, ap=1))) == [("Table 9", "dab_detr")]


def test_a_denoised_one_alone_stands_on_the_right():
    alone = [preset("dn-alone-r50-12ep", table=2, ap=41.7), preset("b", False, table=2, ap=40, host__x=1)]
    head, *_, left, right = listing(alone)
    assert (left.index("b"), right.index("dn-alone")) == (head.index("without"), head.index("with "))
    assert (left.index("40.0") + 4, right.index("41.7") + 4) == (head.index("AP") + 2, head.rindex("AP") + 2)


def test_every_preset_is_there_in_80_columns():
    lines = listing(list_presets())
    words = [word for line in lines for word in line.split()]
    for summary in list_presets():
        assert words.count(summary.name) >= 1 + len(summary.paper.get("also", []))
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line != line.rstrip()]


def test_every_denoised_row_of_the_paper_with_a_baseline_stands_beside_it():
    rows = [" ".join(line.split()) for line in listing(list_presets())]
    for row in (
        "dab-dc5-r50-12ep 38.0 dn-dab-dc5-r50-12ep 41.7 +3.7",
        "group-dab-dc5-r50-12ep 41.9 dn-group-dab-dc5-r50-12ep 44.5 +2.6",
        "detr-r50-300ep 40.6 dn-vanilla-r50-300ep 42.6 +2.0",
        "dab-deform-r50-50ep 46.9 dn-deform-r50-50ep 48.6 +1.7",
        "dab-deform-r50-50ep 46.9 dn-deform-r50-25ep 46.8 -0.1",
        "detr-r50-500ep 42.0 dn-vanilla-r50-250ep 42.2 +0.2",
        "conditional-tiny dn-conditional-tiny",
    ):
        assert rows.count(row) == 1, row
