"""Imports go one way, and heavy libraries stay behind their doors (DESIGN 5).

The source is parsed, never imported. Two tables say everything: `LAYERS`, lowest first, and `DOORS`, which names the only
packages that may import a library. An unlisted module fails: give it a place here and say why in DECISIONS.md.
"""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCE = REPOSITORY / "components"
DAGS = REPOSITORY / "dags"

#: Packages and modules directly under `prunella`, lowest layer first. A layer may import itself and what is below it.
LAYERS: list[set[str]] = [
    {
        "errors",
        "codec",
        "records",
        "config",
        "config_text",
        "recipes",
        "logs",
        "redaction",
        "scratch",
        "startup",
        "node_processes",
        "node_pods",
    },
    # faults: its firing is recorded with put_new, and a storage outage is a store.
    {"storage", "faults", "ledger", "checkpoints", "data", "model"},
    {"data_prep", "health_gate", "training_segment", "checkpoint_validation", "evaluation"},
    {"incidents", "fleet", "tracking", "launch"},
    {"orchestration"},
    {"cli", "__main__"},
]
#: Modules that belong to a listed one because they were split from it.
FAMILIES = {"checkpoint_": "checkpoints", "cli_": "cli"}
FOUNDATIONS = LAYERS[0]
STAGES = LAYERS[2]

#: Library -> the packages that may import it anywhere, inside functions too.
DOORS: dict[str, set[str]] = {
    "torch": {"checkpoints", "model", *STAGES - {"data_prep"}},
    "mlflow": {"tracking"},
    "boto3": {"storage"},
    "botocore": {"storage"},
    "airflow": {"orchestration"},
    "kfp": {"orchestration"},
    "kubernetes": {"orchestration"},  # rendering is plain data (`launch/kubernetes`)
    "lm_eval": {"evaluation"},
    "docker": {"launch"},
    "kubeflow": {"training_segment"},
}

#: Never imported while a DAG file is parsed, neither by it nor by what it imports: each costs seconds (ECOSYSTEM 1).
NOT_AT_PARSE_TIME = {"torch", "mlflow", "pandas", "boto3", "kfp", "lm_eval", "matplotlib", "pyarrow"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Import:
    """One imported name: `module` is absolute, `is_on_load` says that it happens when the file is loaded."""

    file: Path
    line: int
    module: str
    is_on_load: bool

    @property
    def library(self) -> str:
        return self.module.partition(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


# ------------------------------------------------------------------------------------------------ reading imports


def imports_of(path: Path, source: Path) -> list[Import]:
    """Every import statement of a file, also those inside functions."""
    tree = ast.parse(path.read_text(), str(path))
    package = path.relative_to(source).parent.parts if path.is_relative_to(source) else ()
    on_load = {id(node) for node in _on_load(tree)}
    found = []
    for node in ast.walk(tree):
        for module in sorted(set(_modules(node, package, source))):
            found.append(Import(file=path, line=getattr(node, "lineno", 0), module=module, is_on_load=id(node) in on_load))
    return found


def _on_load(node: ast.AST) -> Iterator[ast.AST]:
    """Statements that run when the file is loaded: not those in functions, not those for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _on_load(child)


def _modules(node: ast.AST, package: tuple[str, ...], source: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    parents = package[: len(package) - node.level + 1] if node.level else ()
    base = ".".join([*parents, *filter(None, [node.module])])
    # `from prunella import config` imports the module prunella.config, not a name of the package.
    return [f"{base}.{alias.name}" if _file_of(f"{base}.{alias.name}", source) else base for alias in node.names]


def _file_of(module: str, source: Path) -> Path | None:
    base = source.joinpath(*module.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _place(module: str) -> str:
    """Listed name directly under `prunella` (`prunella.data.order` -> `data`); empty for the package itself."""
    name = next(iter(module.split(".")[1:]), "")
    if any(name in layer for layer in LAYERS):
        return name
    return next((family for prefix, family in FAMILIES.items() if name.startswith(prefix)), name)


def _layer(place: str) -> int | None:
    """Index into LAYERS."""
    return next((index for index, layer in enumerate(LAYERS) if place in layer), None)


def _places(source: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((source / "prunella").rglob("*.py")):
        if path.parent == source / "prunella" and path.stem == "__init__":
            continue
        yield _place(".".join(path.relative_to(source).with_suffix("").parts)), path


# ------------------------------------------------------------------------------------------------ the rules


def unplaced(source: Path) -> list[str]:
    """Modules that no layer lists."""
    return [f"{path}: {place!r} has no layer; add it to LAYERS" for place, path in _places(source) if _layer(place) is None]


def wrong_directions(source: Path) -> list[str]:
    """Imports that climb to a higher layer, and stages that import a sibling."""
    found = []
    for place, path in _places(source):
        for item in imports_of(path, source):
            target = _place(item.module)
            if item.library != "prunella" or target in ("", place):
                continue
            here, there = _layer(place), _layer(target)
            if here is not None and there is not None and there > here:
                found.append(f"{item}, which is above it (layer {there} > {here})")
            if place in STAGES and target in STAGES:
                found.append(f"{item}: a stage never imports another stage; share it through data, model or records")
    return found


def opened_doors(source: Path) -> list[str]:
    """Imports of a library outside its door, and of anything foreign in the foundations."""
    found = []
    for place, path in _places(source):
        for item in imports_of(path, source):
            door = DOORS.get(item.library)
            if door is not None and place not in door:
                found.append(f"{item}; only {', '.join(sorted(door))} may")
            if place in FOUNDATIONS and item.library not in {"prunella", *sys.stdlib_module_names}:
                found.append(f"{item}; foundations use the standard library only")
            if item.library == "components":
                found.append(f"{item}; import prunella, never components.prunella")
    return found


def heavy_at_parse_time(dags: Path, source: Path) -> list[str]:
    """Heavy libraries that parsing a DAG file would load, with the chain of imports that leads there."""
    found = []
    for dag in sorted(dags.rglob("*.py")):
        waiting: list[tuple[Path, list[str]]] = [(dag, [dag.name])]
        seen: set[Path] = set()
        while waiting:
            path, chain = waiting.pop()
            seen.add(path)
            for item in imports_of(path, source):
                if item.is_on_load and item.library in NOT_AT_PARSE_TIME:
                    found.append(f"{item} ({' -> '.join(chain)}); import it inside the function that needs it")
                if item.is_on_load and item.library == "prunella":
                    waiting += [(file, [*chain, item.module]) for file in _loaded_by(item.module, source) if file not in seen]
    return found


def _loaded_by(module: str, source: Path) -> list[Path]:
    """Files that `import module` loads: the packages on the way, and the module."""
    parts = module.split(".")
    prefixes = (".".join(parts[: end + 1]) for end in range(len(parts)))
    return [path for prefix in prefixes if (path := _file_of(prefix, source)) is not None]


# ------------------------------------------------------------------------------------------------ the tests


def test_every_module_has_a_layer() -> None:
    assert not (problems := unplaced(SOURCE)), "\n".join(problems)


def test_imports_go_one_way() -> None:
    assert not (problems := wrong_directions(SOURCE)), "\n".join(problems)


def test_libraries_stay_behind_their_doors() -> None:
    assert not (problems := opened_doors(SOURCE)), "\n".join(problems)


def test_parsing_a_dag_file_loads_nothing_heavy() -> None:
    assert not (problems := heavy_at_parse_time(DAGS, SOURCE)), "\n".join(problems)


def test_no_dag_file_is_named_like_an_installed_module() -> None:
    for dag in DAGS.rglob("*.py"):  # Airflow puts that folder on sys.path
        found = importlib.util.find_spec(dag.stem)
        assert found is None or (found.origin or "").startswith(str(DAGS)), f"{dag} hides {found.origin}: rename it"


def test_the_mlflow_folder_holds_no_python() -> None:
    assert not list((REPOSITORY / "mlflow").rglob("*.py")), "a .py file there would shadow the installed mlflow"


# ------------------------------------------------------------------------------------------------ broken rules are seen


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source root with one lawful stage and one lawful foundation."""
    _write(tmp_path, "prunella/__init__.py", "")
    _write(tmp_path, "prunella/errors.py", "import enum\n")
    _write(tmp_path, "prunella/evaluation/stage.py", "import torch\nfrom prunella.errors import PrunellaError\n")
    return tmp_path


def _write(source: Path, name: str, text: str) -> None:
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_lawful_tree_passes_every_rule(tree: Path) -> None:
    _write(tree, "dags/train.py", "from prunella.errors import PrunellaError\n")

    assert not [*unplaced(tree), *wrong_directions(tree), *opened_doors(tree), *heavy_at_parse_time(tree / "dags", tree)]


@pytest.mark.parametrize(
    ("rule", "name", "text", "message"),
    [
        (unplaced, "prunella/utils.py", "", "'utils' has no layer"),
        (wrong_directions, "prunella/errors.py", "from prunella.ledger import Ledger\n", "above it (layer 1 > 0)"),
        (wrong_directions, "prunella/ledger.py", "def f():\n    from prunella import tracking\n", "above it (layer 3 > 1)"),
        (
            wrong_directions,
            "prunella/checkpoint_reader.py",
            "import prunella.checkpoint_validation\n",
            "above it (layer 2 > 1)",
        ),
        (wrong_directions, "prunella/data_prep/stage.py", "import prunella.evaluation.stage\n", "a stage never imports"),
        (wrong_directions, "prunella/data_prep/stage.py", "from ..evaluation import stage\n", "a stage never imports"),
        (opened_doors, "prunella/data/reader.py", "import torch.utils.data\n", "only checkpoint_validation, checkpoints"),
        (opened_doors, "prunella/fleet/roster.py", "def f():\n    import boto3\n", "only storage may"),
        (opened_doors, "prunella/errors.py", "import numpy\n", "standard library only"),
        (opened_doors, "prunella/cli.py", "import components.prunella.errors\n", "never components.prunella"),
    ],
)
def test_a_broken_rule_is_named(tree: Path, rule, name: str, text: str, message: str) -> None:  # type: ignore[no-untyped-def]
    _write(tree, "prunella/tracking/__init__.py", "")
    _write(tree, name, text)

    problems = rule(tree)

    assert message in "\n".join(problems)


def test_a_heavy_import_behind_two_modules_is_found_with_its_chain(tree: Path) -> None:
    _write(tree, "dags/train.py", "from prunella.orchestration import graph\n")
    _write(tree, "prunella/orchestration/graph.py", "from prunella.evaluation.stage import run\n")

    problems = heavy_at_parse_time(tree / "dags", tree)

    assert "train.py -> prunella.orchestration.graph -> prunella.evaluation.stage" in problems[0]


def test_an_import_inside_a_function_does_not_load_at_parse_time(tree: Path) -> None:
    _write(tree, "dags/train.py", "def task():\n    import torch\n")

    assert not heavy_at_parse_time(tree / "dags", tree)
