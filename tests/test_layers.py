"""The import graph is a DAG: a module may import only from layers listed before its own (docs/design.md)."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "distqtrl"
LAYERS = [
    {"__init__", "__version__"},
    {"errors"},
    {"files"},
    {"config", "seeding", "signals", "versions", "defaults", "cgroup"},
    {"quantize"},
    {"circuit", "mapping", "policy", "environment", "algorithm", "allreduce", "language"},
    {"record", "generator", "slurm"},
    {"training", "export", "nn"},
    {"report", "doctor"},
    {"search"},
    {"api"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
LEFT_OF_THE_BORDER = ("mpi4py", "pennylane", "numba", "distqtrl.circuit", "distqtrl.mapping")


def checked_only(tree):
    """Imports that type checkers alone see."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    return {child for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" for child in ast.walk(block)}


def edges(root):
    """(importing module, imported module, place) of every import, also inside functions.

    The package itself imports what it offers when it is first asked for, and shows it to type checkers.
    """
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        tree = ast.parse(path.read_text())
        unseen = checked_only(tree) if path == root / "__init__.py" else set()
        for node in ast.walk(tree):
            if node in unseen:
                continue
            if isinstance(node, ast.Import):
                targets = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = list(parts[: len(parts) - node.level]) if node.level else []
                module = node.module.split(".") if node.module else []
                targets = [above + module + [alias.name] for alias in node.names]
            else:
                continue
            for target in targets:
                if target[0] == "distqtrl" and len(target) > 1:
                    yield parts[1], target[1], f"{path}:{node.lineno}"


def violations(root):
    return [f"{where}: {a} imports {b}" for a, b, where in edges(root) if a != b and LEVEL[b] >= LEVEL[a]]


def test_imports_go_down():
    assert violations(ROOT) == []


def test_a_hidden_sideways_import_is_seen(tmp_path):
    package = tmp_path / "distqtrl"
    (package / "circuit").mkdir(parents=True)
    (package / "circuit" / "ansatz.py").write_text("def f():\n    from distqtrl import mapping\n")
    (package / "config.py").write_text("import distqtrl.training\n")
    (package / "__init__.py").write_text("if TYPE_CHECKING:\n    import distqtrl.nn\nimport distqtrl.api\n")
    assert len(violations(package)) == 3


def test_the_policy_side_is_classical(tmp_path):
    code = (
        "import sys; from distqtrl.policy import policy_file; from distqtrl.environment import rollout, vector;"
        "from distqtrl.export import folder;"
        f"print([m for m in sys.modules if m.startswith({LEFT_OF_THE_BORDER})])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_mpi_is_imported_in_one_file():
    users = [path.name for path in ROOT.rglob("*.py") if "mpi4py import" in path.read_text()]
    assert users == ["mpi.py"]
