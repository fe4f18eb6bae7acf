"""The command as a user runs it: what it prints where, and how it exits."""

import os
import re
import subprocess
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from dndetr import __version__, cli
from dndetr.listing import listing
from dndetr.models.hosts import HOSTS
from dndetr.resolve import list_presets, load_preset
from tests.data.coco_files import image, item, write_split

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "",
    "train",
    "eval",
    "predict",
    "ablate",
    "known-objects",
    "known-labels",
    "presets",
    "info",
    "doctor",
    "analyze",
    "analyze is",
    "analyze anchors",
    "analyze curves",
    "analyze cost",
    "data",
    "data shapes",
    "data check",
    "data convert",
    "data stats",
    "data look",
    "labels",
    "labels embed",
    "labels classify",
]


def environment(**variables: str) -> dict[str, str]:
    colours = ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "COLUMNS", "TERMINAL_WIDTH", "_TYPER_FORCE_DISABLE_TERMINAL")
    kept = {key: value for key, value in os.environ.items() if key not in colours}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def run(*command: str, cwd: Path, **variables: str) -> SimpleNamespace:
    """A process of its own, with pipes: (code, out, err)."""
    done = subprocess.run(command, cwd=cwd, env=environment(**variables), capture_output=True, text=True, timeout=120)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def dndetr(*arguments: str, cwd: Path) -> SimpleNamespace:
    return run(sys.executable, "-m", "dndetr", *arguments, cwd=cwd)


@pytest.fixture
def main(main, monkeypatch, tmp_path):
    """The command, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return main


# help

HELP = """
import sys
from dndetr import cli
try:
    cli.main()
finally:
    print([name for name in ("torch", "numpy", "matplotlib") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_importing_torch(command, tmp_path):
    done = run(sys.executable, "-c", HELP, *command.split(), "--help", cwd=tmp_path)
    assert (done.code, done.err) == (0, "[]\n")
    assert f"Usage: {' '.join(['dndetr', *command.split()])}" in done.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_short_form(command, main):
    assert main(*command.split(), "-h") == main(*command.split(), "--help")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("", "--version --debug --help train eval predict presets info data"),
        ("train", "KEY=VALUE --preset --out --resume --init-from --overwrite"),
        ("eval", "KEY=VALUE --ckpt --json"),
        ("predict", "IMAGE|FOLDER --ckpt --out --threshold"),
        ("ablate", "STUDY KEY=VALUE --preset --seeds --first-seed --jobs --out --dry-run"),
        ("presets", "NAME"),
        ("info", "KEY=VALUE"),
        ("analyze is", "KEY=VALUE --ckpt --layers --recompute --out"),
        ("analyze anchors", "KEY=VALUE --ckpt --images --out"),
        ("analyze curves", "--run --out"),
        ("analyze cost", "KEY=VALUE --preset --steps --size --batch"),
        ("labels", "embed classify"),
        ("labels embed", "NAME --out --data"),
        ("labels classify", "KEY=VALUE --ckpt --out --epochs --seed"),
        ("data", "shapes check convert stats look"),
        ("data shapes", "--out --train --val --size --seed"),
        ("data check", "ROOT --queries"),
        ("data convert", "SRC KEY=VALUE --to"),
        ("data stats", "ROOT KEY=VALUE --preset --out"),
        ("data look", "PRESET KEY=VALUE --count --out"),
    ],
)
def test_help_names_every_option(command, options, main):
    done = main(*command.split(), "--help")
    assert done.code == 0
    assert not [option for option in options.split() if option not in done.out]


def test_every_command_is_looked_at_here():
    def names(command, path: tuple[str, ...] = ()) -> list[str]:
        inner = getattr(command, "commands", {})
        shown = [(name, each) for name, each in inner.items() if not each.hidden]
        return [" ".join(path), *(name for own, each in shown for name in names(each, (*path, own)))]

    assert sorted(names(typer.main.get_command(cli.app))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("", "analyze", "data", "labels")])
def test_help_shows_an_example_that_the_command_understands(command, main, monkeypatch):
    example = re.search(r"Example: dndetr (.*?)\s*$", main(*command.split(), "--help").out, re.MULTILINE)[1].split()
    assert " ".join(example).startswith(command)
    groups = [cli.app, *(group.typer_instance for group in cli.app.registered_groups)]
    for leaf in [leaf for group in groups for leaf in group.registered_commands]:
        monkeypatch.setattr(leaf, "callback", silent(leaf.callback))
    assert main(*example) == (0, "", "")


def silent(function):
    """A function that takes the same and does nothing."""
    return wraps(function)(lambda **_: None)


def test_piped_help_has_no_colour_and_nothing_cut(tmp_path):
    done = dndetr("train", "--help", cwd=tmp_path)
    assert "\x1b" not in done.out
    assert "…" not in done.out
    assert "Usage: dndetr train [OPTIONS] [KEY=VALUE]" in done.out


def test_no_command_shows_the_help(main):
    done = main()
    assert (done.code, done.err) == (2, "")
    assert "Begin with: dndetr train" in done.out


def test_a_group_without_command_shows_its_help(main):
    done = main("data")
    assert (done.code, done.err) == (2, "")
    assert "shapes" in done.out


def test_the_version(main):
    assert main("--version") == (0, f"dndetr {__version__}\n", "")


# mistakes


@pytest.mark.parametrize(
    ("arguments", "errors"),
    [
        ("foo", ["dndetr: No such command 'foo'. (see dndetr --help)"]),
        ("data foo", ["dndetr data: No such command 'foo'. (see dndetr data --help)"]),
        ("data check --bogus", ["dndetr data check: No such option: --bogus (see dndetr data check --help)"]),
        ("eval", ["dndetr eval: Missing option '--ckpt'. (see dndetr eval --help)"]),
        ("predict --ckpt x --out y", ["dndetr predict: Missing argument 'IMAGE|FOLDER'. (see dndetr predict --help)"]),
        ("presets a b", ["dndetr presets: Got unexpected extra argument(s) (b) (see dndetr presets --help)"]),
        ("train foo", ["override 'foo': an override is key=value, for example train.lr=1e-4"]),
        (
            "train train.lr=fast noise.group=3",
            [
                "override 'train.lr=fast': train.lr must be a number, got 'fast'",
                "override 'noise.group=3': unknown key 'noise.group', did you mean noise.groups?",
            ],
        ),
        ("train --preset nope.yaml", ["nope.yaml: no such preset file"]),
        ("presets zzz", ["unknown preset 'zzz' (see `dndetr presets`; the path of a file ends in .yaml)"]),
        (
            "info dn-dab-tin",
            [
                "unknown preset 'dn-dab-tin'; did you mean dn-dab-tiny or dab-tiny or dn-sam-tiny? "
                "(see `dndetr presets`; the path of a file ends in .yaml)"
            ],
        ),
        *(
            (
                f"train --resume run {other}",
                ["--resume goes on with a run as it is: leave out --out, --init-from and --overwrite"],
            )
            for other in ("--out run2", "--init-from run2", "--overwrite")
        ),
        ("train --resume run", ["run: not a run folder (no config.yaml in it), so there is nothing to resume"]),
        ("train --resume .", [".: not a run folder (no config.yaml in it), so there is nothing to resume"]),
        ("train data.root=nowhere", ["{here}/nowhere: no such folder; set data.root to a dataset, or to shapes"]),
        ("eval --ckpt nowhere", ["nowhere: no such checkpoint or run folder"]),
        ("predict --ckpt nowhere --out o x.jpg", ["nowhere: no such checkpoint or run folder"]),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr(arguments, errors, main, tmp_path):
    done = main(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [error.replace("{here}", str(Path.cwd())) for error in errors]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ("train --lr 3", "train.lr=3"),
        ("train --lr=3", "train.lr=3"),
        ("train --lr -3", "train.lr=-3"),
        ("train --lr", "train.lr=VALUE"),
        ("train --epochs 3", "train.epochs=3"),
        ("train --batch-size 8", "train.batch_size=8"),
        ("train --noise.groups 3", "noise.groups=3"),
        ("train --groups=3", "noise.groups=3"),
        ("eval --ckpt x --top 100", "eval.top=100"),
        ("info dn-dab-tiny --queries 9", "host.queries=9"),
    ],
)
def test_a_flag_that_is_a_setting_is_answered_with_the_override(arguments, hint, main):
    done = main(*arguments.split())
    assert (done.code, done.out) == (2, "")
    first, second = done.err.splitlines()
    flag = next(a for a in arguments.split()[::-1] if a.startswith("--")).partition("=")[0]
    command = arguments.split()[0]
    assert re.fullmatch(rf"dndetr {command}: No such option: {flag}( \(.*\))? \(see dndetr {command} --help\)", first)
    assert second == f"settings are given without dashes: {hint}"


@pytest.mark.parametrize("arguments", ["data check --top 5", "presets --seed 3", "data shapes --out x --epochs 3"])
def test_a_command_without_settings_does_not_speak_of_them(arguments, main):
    assert len(main(*arguments.split()).err.splitlines()) == 1


def test_a_flag_that_is_nothing_has_no_hint(main):
    assert main("train", "--zzzz", "3").err == "dndetr train: No such option: --zzzz (see dndetr train --help)\n"


def test_an_option_without_its_value_is_told_of_its_own_command(main):
    done = main("train", "--resume")
    assert (done.code, done.err) == (2, "dndetr train: Option '--resume' requires an argument. (see dndetr train --help)\n")


def test_a_number_out_of_its_range_is_a_mistake(main):
    done = main("predict", "--ckpt", "x", "--out", "y", "--threshold", "3", "x.jpg")
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert done.err.startswith("dndetr predict: Invalid value for '--threshold': ")


def test_a_counter_that_is_not_installed_is_a_mistake(main, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    done = main("train", "eval.counter=faster_coco_eval", "data.root=nowhere")
    sentence = "eval.counter=faster_coco_eval needs its package: pip install 'dndetr[fast]'"
    assert (done.code, done.out, done.err) == (2, "", f"{sentence}\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["0", "-4"])
def test_shapes_of_no_size_are_a_mistake(main, size, tmp_path):
    done = main("data", "shapes", "--out", "x", "--size", size)
    assert (done.code, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert not list(tmp_path.iterdir())


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    (tmp_path / "p.yaml").write_text("host: {name: dab_dtr}\n" + "\n" * 98 + f"{'x' * 190}: 3\n")
    done = dndetr("train", "--preset", "p.yaml", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines() == [
        f"p.yaml:1: host.name must be {' or '.join(HOSTS)}, got 'dab_dtr', did you mean dab_detr?",
        f"p.yaml:100: unknown key '{'x' * 190}'",
    ]


@pytest.mark.parametrize(
    "arguments", ["--debug info zzz", "info --debug zzz", "info zzz --debug", "train foo --debug", "foo --debug"]
)
def test_debug_anywhere_shows_the_traceback_before_the_sentence(arguments, main):
    done = main(*arguments.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert done.err.splitlines()[-1] == main(*arguments.replace("--debug", "").split()).err.rstrip("\n")


def broken(error: BaseException):
    def raises(*_, **__):
        raise error

    return raises


def test_an_internal_error_is_one_line_and_exits_with_1(main, monkeypatch):
    monkeypatch.setattr("dndetr.resolve.load_preset", broken(RuntimeError("not\nenough  memory")))
    done = main("presets", "dn-dab-tiny")
    assert (done.code, done.out) == (1, "")
    assert done.err == ("dndetr: internal error: RuntimeError: not enough memory (run again with --debug for the traceback)\n")


def test_an_internal_error_has_its_traceback_with_debug(main, monkeypatch):
    monkeypatch.setattr("dndetr.resolve.load_preset", broken(RuntimeError("no memory")))
    done = main("presets", "dn-dab-tiny", "--debug")
    assert done.code == 1
    assert "Traceback (most recent call last):" in done.err
    assert "in raises" in done.err


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_ctrl_c_exits_with_130(main, monkeypatch, debug):
    monkeypatch.setattr("dndetr.resolve.load_preset", broken(KeyboardInterrupt()))
    done = main("presets", "dn-dab-tiny", *debug)
    assert (done.code, done.out) == (130, "")
    assert debug or done.err.strip() == ""


# what the commands hand on


@pytest.fixture
def trained(monkeypatch):
    """What `dndetr train` would have trained."""
    calls = []
    monkeypatch.setattr("dndetr.training.loop.train", lambda *a, **k: calls.append((*a, k)))
    return calls


NOTHING = {"resume": None, "init_from": None, "overwrite": False, "allow_change": [], "trust": False, "deterministic": False}


def test_train_alone_takes_the_default_preset(main, trained):
    assert main("train").code == 0
    assert trained == [(load_preset("dn-deform-tiny"), Path("runs/dn-deform-tiny"), NOTHING)]


def test_train_with_everything(main, trained, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: dn-dab-tiny\n")
    arguments = ["train", "train.lr=3", "--preset", "mine.yaml", "--init-from", "old", "--overwrite", "noise=null"]
    assert main(*arguments).code == 0
    ((resolved, out, options),) = trained
    assert (resolved.config.train.lr, resolved.config.noise, resolved.config.host.name) == (3.0, None, "dab_detr")
    assert (out, options) == (Path("runs/mine"), {**NOTHING, "init_from": Path("old"), "overwrite": True})
    assert main("train", "--out", "here").code == 0
    assert trained[1][1] == Path("here")


def test_train_goes_on_with_the_settings_of_the_run(main, trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("extends: dn-dab-tiny\ntrain: {seed: 5}\n")
    assert main("train", "--resume", "run", "train.epochs=99", "--allow-change", "train.lr", "--trust-pickle").code == 0
    ((resolved, out, options),) = trained
    assert (resolved.config.train.seed, resolved.config.train.epochs) == (5, 99)
    assert (out, options) == (None, {**NOTHING, "resume": Path("run"), "allow_change": ["train.lr"], "trust": True})
    assert main("train", "--resume", "run/checkpoints/previous.pt").code == 0
    assert trained[1][0].config.train.seed == 5


def test_eval_and_predict_hand_on_what_they_were_given(main, monkeypatch):
    from dndetr.training.commands import Telling

    calls = []
    monkeypatch.setattr("dndetr.training.commands.evaluate_command", lambda *a, **options: calls.append((*a, options)))
    monkeypatch.setattr("dndetr.predict.predict", lambda *a, **options: calls.append((*a, options)))
    assert main("eval", "--ckpt", "run", "eval.top=9", "--json", "n.json").code == 0
    assert main("predict", "--ckpt", "run", "a.jpg", "b", "--out", "o", "--trust-pickle").code == 0
    plain = {"rounds": 0, "sure": 0.1, "embeddings": None}
    assert calls == [
        (Path("run"), ["eval.top=9"], Path("n.json"), {"telling": Telling(), "embeddings": None, "trust": False}),
        (Path("run"), [Path("a.jpg"), Path("b")], Path("o"), 0.3, {**plain, "trust": True}),
    ]


# presets, info, data


def test_presets_lists_every_preset_with_its_ap(main):
    done = main("presets")
    assert (done.code, done.err) == (0, "")
    assert {summary.name for summary in list_presets()} <= set(done.out.split())
    rows = [" ".join(row.split()) for row in done.out.splitlines()]
    assert rows[0] == "without denoising AP with denoising AP"
    assert "dab-r50-50ep 42.2 dn-dab-r50-50ep 44.1 +1.9" in rows
    assert "deform-tiny dn-deform-tiny" in rows
    assert rows[-1] == "AP is what the paper prints. `dndetr presets NAME` shows all settings of one."


def test_one_preset_is_shown_as_a_preset_with_the_same_settings(main, tmp_path):
    done = main("presets", "deform-r50-12ep")
    assert (done.code, done.err) == (0, "")
    assert "  epochs: 12                   # presets/deform-r50-12ep.yaml:4" in done.out.splitlines()
    assert "  lr: 0.0002                   # presets/deform-r50-50ep.yaml:8" in done.out.splitlines()
    (tmp_path / "mine.yaml").write_text(done.out)
    assert load_preset(tmp_path / "mine.yaml").config == load_preset("deform-r50-12ep").config


@pytest.mark.parametrize(("name", "parameters", "denoising"), [("dn-deform-tiny", "1.07", True), ("dab-tiny", "1.44", False)])
def test_info_counts(main, name, parameters, denoising):
    done = main("info", name)
    assert (done.code, done.err) == (0, "")
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert rows[0] == "counted paper"
    assert rows[1:3] == [f"parameters {parameters} M -", f"of them trainable {parameters} M -"]
    assert re.fullmatch(r"inference [\d.]+ G -", rows[3])
    assert re.fullmatch(r"training step, 7 objects, without denoising [\d.]+ G -", rows[4])
    counted = r"[\d.]+ G" if denoising else "none"
    assert re.fullmatch(rf"training step, 7 objects, with denoising {counted} -", rows[5])


def test_info_of_a_row_has_the_paper_beside_it(main):
    done = main("info", "dab-r50-50ep", "host.encoder_layers=1")
    rows = [" ".join(line.split()) for line in done.out.splitlines()]
    assert rows[1].endswith(" M 44 M")
    assert re.fullmatch(r"inference [\d.]+ G 94 G", rows[3])
    assert "The paper (DAB-DETR-R50, Table 1: 42.2 AP) does not state its image size." in done.out


def test_piped_output_has_no_colour_and_whole_lines(tmp_path):
    (tmp_path / "p.yaml").write_text(f"extends: dab-tiny2\ndata: {{root: {'x' * 200}}}\n")
    (tmp_path / "dab-tiny2.yaml").write_text("host: {name: dab_detr}\n")
    shown = dndetr("presets", "p.yaml", cwd=tmp_path)
    assert f"  root: {'x' * 200}  # p.yaml:2" in shown.out.splitlines()
    listed = dndetr("presets", cwd=tmp_path)
    assert listed.out.splitlines()[:-2] == listing(list_presets())
    assert "\x1b" not in shown.out + listed.out
    assert "…" not in listed.out


def test_made_shapes_are_checked_without_defects(main, tmp_path):
    made = main("data", "shapes", "--out", "s", "--train", "3", "--val", "2", "--size", "48", "--seed", "5")
    assert (made.code, made.out.splitlines()[-1]) == (0, "s: 3 training and 2 validation images")
    assert len(list((tmp_path / "s" / "train").iterdir())) == 3
    checked = main("data", "check", "s")
    assert (checked.code, checked.err) == (0, "")
    assert checked.out.splitlines()[0].startswith("s, the plain COCO layout: annotations/instances_train.json and ")
    assert checked.out.splitlines()[-1] == "no defects"


def test_shapes_do_not_overwrite(main, tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "letter.txt").write_text("dear")
    done = main("data", "shapes", "--out", "s", "--train", "1", "--val", "1")
    assert (done.code, done.out) == (2, "")
    assert done.err == "s: is not an empty folder; remove it or choose another place\n"


def test_a_dataset_with_defects_exits_with_1(main, tmp_path):
    write_split(tmp_path / "d", "train", [image(1)], [item(1, 1, [0, 0, 5, 5]), item(2, 1, [0, 0, 5, 0])])
    write_split(tmp_path / "d", "val", [image(1)], [item(1, 1, [0, 0, 5, 5])])
    done = main("data", "check", "d")
    assert (done.code, done.err) == (1, "")
    assert "1 defects" in done.out or "1 defect" in done.out
    crowded = main("data", "check", "d", "--queries", "1")
    assert crowded.code == 1
    assert "has 2 objects, more than the 1 queries can find" in crowded.out


def test_a_missing_dataset_is_a_wrong_argument(main):
    done = main("data", "check", "nowhere")
    assert (done.code, done.out) == (2, "")
    assert "nowhere: no such folder" in done.err


def test_files_that_are_named_are_checked(main, tmp_path):
    objects = [item(1, 1, [0, 0, 5, 5]), item(2, 2, [0, 0, 5, 5])]
    write_split(tmp_path / "d", "train", [image(1), image(2)], objects)
    done = main("data", "check", "data.train=d/annotations/instances_train.json", "data.images=d/train", "data.holdout=0.5")
    assert (done.code, done.err) == (0, "")
    first, *_, last = done.out.splitlines()
    assert first.startswith("d/train, COCO files that were named: d/annotations/instances_train.json; 0.5 of the images")
    assert last == "no defects"


# completion of the installed command


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("dndetr train --preset dn-dab-t", ["dn-dab-tiny"]),
        ("dndetr train --preset dn-dab", [s.name for s in list_presets() if s.name.startswith("dn-dab")]),
        ("dndetr presets dn-deform-t", ["dn-deform-tiny"]),
        ("dndetr info deform-t", ["deform-tiny"]),
        ("dndetr train --preset zzz", []),
        ("dndetr tr", ["train"]),
        ("dndetr train --over", ["--overwrite"]),
    ],
)
def test_the_shell_completes(words, completed, tmp_path):
    script = Path(sys.executable).with_name("dndetr")
    if not script.is_file():
        pytest.skip(f"no {script.name} beside {Path(sys.executable).name}: the package is not installed")
    last = str(len(words.split()) - 1)
    done = run(str(script), cwd=tmp_path, _DNDETR_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=last)
    assert (done.code, done.err) == (0, "")
    assert done.out.split() == completed
