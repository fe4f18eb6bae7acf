"""The code on two pages of the documents does what they say: it is run, block after block, as a reader would run it."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from types import ModuleType

import pytest

from dndetr.models.hosts import HOSTS
from tests.hosts import test_contract as contract
from tests.hosts import test_contract_fails as fails
from tests.test_imports import violations

DOCS = Path(__file__).resolve().parents[1] / "docs"
HOST, LIBRARY = "add-a-host.md", "use-as-library.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
FORMS = ("box", "box, class embeddings")  # of the host on the page


def blocks(page: str) -> Iterator[tuple[str, int, str]]:
    """(language, line of its beginning, text) of every block."""
    text = (DOCS / page).read_text()
    for found in BLOCK.finditer(text):
        yield found[1], text.count("\n", 0, found.start(2)), found[2]


def run(page: str, name: str, folder: Path) -> ModuleType:
    """Executes a page in `folder` as the module `name`.

    Python is run, YAML becomes the file that its first line names, and text must be what the block before it printed.
    """
    module, printed = ModuleType(name), ""
    sys.modules[name] = module  # where dataclasses look for what their annotations mean
    with chdir(folder):
        for language, line, text in blocks(page):
            if language == "python":
                with redirect_stdout(io.StringIO()) as screen:
                    exec(compile("\n" * line + text, DOCS / page, "exec"), vars(module))
                printed = screen.getvalue()
            elif language == "yaml":
                Path(text.split()[1]).write_text(text)
            else:
                assert (language, text) == ("text", printed), f"{page}:{line}"
    return module


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[ModuleType]:
    """The page's host, in the tables of the hosts and of the contract until this file is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(HOSTS, "box_detr", None)  # which the page does; so it is undone
        for form in FORMS:
            patch.setitem(contract.FORMS, form, None)
        patch.setitem(sys.modules, "dndetr.models.hosts.box_detr", None)
        patch.setattr(contract, "DENOISING", [*contract.DENOISING, *FORMS])
        patch.setitem(contract.EMBEDDINGS, FORMS[1], contract.VECTORS)
        yield run(HOST, "dndetr.models.hosts.box_detr", tmp_path_factory.mktemp("host"))


def checks() -> Iterator[tuple[Callable, dict]]:
    """Every check of the contract that is asked of each host, or of each that denoises, with its other parameters."""
    for check in vars(contract).values():
        tables = {mark.args[0]: mark.args[1] for mark in getattr(check, "pytestmark", ()) if mark.name == "parametrize"}
        form = tables.pop("form", None)
        if form is contract.FORMS or form is contract.DENOISING:
            for values in itertools.product(*tables.values()):
                yield check, dict(zip(tables, values, strict=True))


CHECKS = list(checks())


def test_the_checks_of_the_contract_are_found():
    assert len({check for check, _ in CHECKS}) > 10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("check", "options"), CHECKS, ids=[f"{check.__name__} {options or ''}" for check, options in CHECKS])
def test_the_host_keeps_the_contract(host, check, options, form):
    check(form, **options)


@pytest.mark.parametrize(("breaks", "check", "options"), fails.COPIES, ids=[breaks.__name__ for breaks, _, _ in fails.COPIES])
def test_a_broken_copy_of_the_host_is_found(host, monkeypatch, breaks, check, options):
    fails.test_a_broken_copy_is_found(monkeypatch, breaks, check, options, "box")


def test_the_host_imports_parts_only():
    """Up to where the page goes on with what is around the host."""
    sources = [text for language, _, text in blocks(HOST) if language == "python"]
    assert violations("models/hosts/box_detr.py", "".join(sources[:2])) == []
    assert violations("models/hosts/box_detr.py", sources[2]) != []


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Iterator[ModuleType]:
    """The other page, and its names when it is through."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "page", None)
        yield run(LIBRARY, "page", tmp_path_factory.mktemp("library"))


def test_a_detector_of_ones_own_learns(library):
    matching, denoising = zip(*library.history, strict=True)
    assert matching[-1] < 0.8 * matching[0] and denoising[-1] < 0.6 * denoising[0]


def test_its_matches_and_a_trained_detector_are_what_the_page_says(library):
    assert 0 <= library.instability(library.before, library.after) <= library.largest_instability(library.after)
    picture = library.Image.new("RGB", (64, 64))
    found = library.predictor(picture, threshold=0)
    scores = [each["score"] for each in found]
    assert scores == sorted(scores, reverse=True) and len(found) == library.predictor.config.eval.top
    assert {each["name"] for each in found} <= set(library.predictor.categories.names)


def test_no_other_page_has_code():
    pages = {page.name for page in DOCS.glob("*.md") if any(language == "python" for language, _, _ in blocks(page.name))}
    assert pages == {HOST, LIBRARY}
