"""The corpus of the fuzz targets, seeds and found cases alike, goes through them without a fuzzer."""

from pathlib import Path

import pytest

from dndetr.console import UserError
from dndetr.resolve import load_preset
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path for name in TARGETS for path in (CORPUS / name).iterdir())


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_case_of_the_corpus_keeps_the_promises_of_its_target(case):
    TARGETS[case.parent.name](case.read_bytes())


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("tag-timestamp", "2: the value of data.root cannot be read: could not determine a constructor for the tag"),
        ("tags-of-keys", "2: the value of x cannot be read: could not determine a constructor for the tag"),
        (
            "tags-of-blocks",
            "2: the value of data cannot be read: a block with the tag 'tag:yaml.org,2002:set'; blocks have none",
        ),
        ("tags-that-lie", "2: the value of train.seed cannot be read: not a whole number, got ''"),
        ("billion-laughs", "4: larger than 2000 values, with its aliases written out"),
        ("merge-keys", "3: merge keys (<<) are not known; write the settings out, or use extends"),
        ("within-itself", "1: nested within itself"),
        ("nested-too-deeply", "2: nested deeper than 20 levels"),
        ("huge-integer", "2: the value of train.epochs cannot be read: too long a number, of 5000 digits"),
        ("large-integer", "2: train.epochs must lie between -2^63 and 2^63, got 1000"),
        ("null-bytes", "2: not valid YAML: the character '\\x00' is not allowed"),
        ("beyond-unicode", "2: not valid YAML: a character or a version that does not exist"),
        ("lone-surrogate", "2: data.root must be text without halves of characters (surrogates), got '\\ud800'"),
        ("host-names-of-other-types", "1: host.name must be dab_detr or deformable_detr or "),
        ("extends-a-list", '2: extends must be the name or the path of a preset, got ["a"]'),
        ("extends-too-long-a-name", "2: extends: unknown preset 'aaaa"),
        ("long-key", "2: a key of 2000 characters is no setting"),
    ],
)
def test_a_mistake_is_said_with_its_line(case, said):
    path = CORPUS / "presets" / f"{case}.yaml"
    with pytest.raises(UserError) as error:
        load_preset(path)
    assert [line for line in error.value.lines if line.startswith(f"{path}:{said}")], error.value.lines
