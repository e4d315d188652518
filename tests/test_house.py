"""How the house is built: imports go down, nothing is private and shared, nothing is long, every public argument has a type."""

import ast
import math
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("brh_jax", "weights_convert", "experiments", "benchmarks")
GROUND = (
    "errors files vectors images types tokens partition preprocessing statistics least_squares system curves readable command"
)
# From the ground up. A room may import those below it; those of one level may not import each other, but on the ground.
LEVELS = (
    {f"brh_jax.{name}" for name in GROUND.split()},
    {"brh_jax.train"},
    {"brh_jax.report"},
    {"brh_jax.phases", "brh_jax.dynamics", "brh_jax.data"},
    {"brh_jax.models"},
    {"brh_jax.distill", "brh_jax.probes", "brh_jax.interventions", "brh_jax.supervised"},
    {"brh_jax.loading"},
    {"brh_jax.fitting"},
    {"brh_jax"},  # what it exports
    {"weights_convert"},
    {"benchmarks"},
    {"experiments"},
)
THE_ONE_WAY_BACK = ("brh_jax.loading", "weights_convert")  # inside a function
HEAVY = ("sklearn", "matplotlib", "grain", "orbax", "optax", "transformers", "torch", "scipy", "pandas", "tensorflow_datasets")


def modules() -> dict[str, pathlib.Path]:
    """Files of the packages, by the name of their module."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(name: str) -> set[str]:
    """The modules here that a module imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {whole if whole in MODULES else node.module for whole in inner}
    found = {one for one in found if one in MODULES}
    back, there = THE_ONE_WAY_BACK
    return {one for one in found if not (name == back and package_of(one) == there)} - {name}


def folder_of(name: str) -> str:
    """The folder that a module lies in, dotted."""
    return ".".join(MODULES[name].parent.relative_to(ROOT).parts)


def package_of(name: str) -> str:
    """A room of brh_jax, or another package."""
    rooms = {room for level in LEVELS for room in level}
    parts = name.split(".")
    return next(room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in rooms)


def circles(edges: dict[str, set[str]]) -> list[str]:
    """What can be reached from itself."""

    def reached(start):
        seen, ahead = set(), list(edges[start])
        while ahead:
            if (one := ahead.pop()) not in seen:
                seen.add(one)
                ahead += edges.get(one, ())
        return seen

    return [name for name in edges if name in reached(name)]


def functions(packages=PACKAGES):
    """(module, function, number of lines of its body without the docstring)."""
    for name, tree in TREES.items():
        for node in ast.walk(tree) if name.split(".")[0] in packages else ():
            if isinstance(node, ast.FunctionDef):
                body = node.body[ast.get_docstring(node) is not None :]
                yield name, node, body[-1].end_lineno - body[0].lineno + 1 if body else 0


ALL_ROOMS = sorted({package_of(name) for name in MODULES})


@pytest.mark.parametrize("package", ALL_ROOMS)
def test_imports_go_down(package):
    place = {room: height for height, level in enumerate(LEVELS) for room in level}
    wrong = [
        f"{name} imports {one}"
        for name in MODULES
        if package_of(name) == package
        for one in imports(name)
        if package_of(one) != package and place[package_of(one)] >= max(place[package], 1)
    ]
    assert not wrong


def test_no_circles_between_files():
    assert not circles({name: imports(name) for name in MODULES})


def test_no_circles_between_folders():
    """A folder and one inside it are one: the order above tells what may import what."""
    edges: dict[str, set[str]] = {}
    for name in MODULES:
        for one in imports(name):
            a, b = folder_of(name), folder_of(one)
            if not f"{a}.".startswith(f"{b}.") and not f"{b}.".startswith(f"{a}."):
                edges.setdefault(a, set()).add(b)
    assert not circles(edges)


def test_the_one_way_back_is_inside_a_function():
    top = [node for node in TREES["brh_jax.loading"].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in top if "weights_convert" in ast.unparse(node)]


@pytest.mark.parametrize("package", ["brh_jax", "brh_jax.dynamics", "brh_jax.phases"])
def test_importing_is_light(package):
    code = f"import sys, {package}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_private_name_crosses_a_package():
    wrong = []
    for name, tree in TREES.items():
        modules_here = {}  # name in the file -> module
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if alias.name.startswith("_") and folder_of(name) != folder_of_import(node.module):
                        wrong.append(f"{name} imports {node.module}.{alias.name}")
                    modules_here[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and re.match("_[a-z]", node.attr):
                module = modules_here.get(node.value.id)
                if module in MODULES and folder_of(module) != folder_of(name):
                    wrong.append(f"{name} uses {module}.{node.attr}")
    assert not wrong


def folder_of_import(module: str) -> str:
    """The folder of a module here, or the name of another's."""
    return folder_of(module) if module in MODULES else module


def test_no_file_is_long():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not {name: length for name, length in lengths.items() if length > 450}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_long(package):
    assert not [f"{name}.{node.name}: {lines}" for name, node, lines in functions([package]) if lines > 80]


def test_most_functions_are_short():
    lines = sorted(lines for _, _, lines in functions())
    assert lines[math.ceil(0.95 * len(lines)) - 1] <= 35


LIBRARY = [room for room in ALL_ROOMS if room.split(".")[0] in ("brh_jax", "weights_convert")]


@pytest.mark.parametrize("room", ALL_ROOMS)
def test_public_arguments_have_types(room):
    wrong = []
    for name, tree in TREES.items():
        holders = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
        for node in (node for holder in holders for node in holder.body if package_of(name) == room):
            if isinstance(node, ast.FunctionDef) and not re.match("_[a-z]", node.name):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                bare = [one.arg for one in given if one.annotation is None and one.arg not in ("self", "cls")]
                wrong += [f"{name}.{node.name}: {', '.join(bare)}"] if bare else []
    assert not wrong


@pytest.mark.parametrize("room", LIBRARY)
def test_the_library_speaks_of_arguments(room):
    """Settings and flags of experiments are not its business."""
    wrong = [
        f"{name}:{node.lineno} {node.value!r}"
        for name in MODULES
        if package_of(name) == room
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.search(r"\bconfig\.(?!json\b)[a-z]|--(config|workdir)\b", node.value)
    ]
    assert not wrong
