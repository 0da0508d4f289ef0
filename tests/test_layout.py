"""The package keeps its shape: imports point down, files and functions stay short."""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = (  # what stands higher may import what stands lower; neighbours in one line may not import each other
    ("completion",),
    ("train", "dpo", "grpo", "eval", "chat", "serve", "convert", "preview", "report", "doctor", "cli"),
    ("run_report",),
    ("preference",),
    ("dialogue",),
    ("run_folder",),
    ("model_card",),
    ("batches", "program"),
    ("recipe",),
    ("live_view",),
    ("trainer", "callbacks", "task_metrics", "adapters", "plan", "health_warnings", "warm_start"),
    ("nanochat_training", "guarded_trainer"),
    ("resumable_trainer",),
    ("arguments", "throughput", "curves", "nanochat_origin", "gradients", "faults", "captured_step", "step_log", "checkpoints", "stopping"),
    ("evaluation",),
    ("inspection",),
    ("pages", "environment"),
    ("data",),
    ("optim",),
    ("generation",),
    ("tasks",),
    ("execution",),
    ("",),  # chatsft itself: registers the model
    ("model",),
)
STAGES = {  # of data/: they meet in dataset columns
    "load": ("mixture", "conversations", "entries", "formats", "tool_calls"),
    "render": ("rendering", "template_rendering"),
    "pack": ("packing",),
    "collate": ("collator",),
}
MODEL_MAY_IMPORT = {"torch", "transformers", "tokenizers", *sys.stdlib_module_names}
VAGUE_NAMES = {"util", "utils", "common", "helper", "helpers", "misc"}
HOME_PATH = re.compile(r"(?<![\w.~}-])(?:/(?:home|Users|root|work|mnt|data\d*)/|[A-Z]:\\Users)\w*")
WRITTEN = {".py", ".md", ".yaml", ".cfg", ".toml", ".txt", ".svg"}
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 520

Sources = dict[str, str]  # by dotted module name; a package has the name of its folder


def read_package() -> Sources:
    paths = (REPOSITORY / "chatsft").rglob("*.py")
    return {".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path.read_text() for path in paths}


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """Yield (leading dots, dotted name) of every import, those inside functions too; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def imported_modules(module: str, sources: Sources) -> set[str]:
    """Resolve the imports of a module that stay inside the package."""
    found = set()
    for dots, name in imported_names(sources[module]):
        is_package = any(other.startswith(f"{module}.") for other in sources)
        base = module.split(".")[: len(module.split(".")) + is_package - dots] if dots else []
        target = ".".join([*base, name])
        if target.split(".")[0] == "chatsft":
            found.add(target if target in sources else target.rpartition(".")[0])
    return found


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def height(module: str) -> int:
    places = [index for index, layer in enumerate(reversed(LAYERS)) if part(module) in layer]
    assert places, f"{module} has no place in LAYERS"
    return places[0]


def stage(module: str) -> str:
    name = module.removeprefix("chatsft.data.")
    stages = [stage for stage, names in STAGES.items() if name in names]
    assert stages, f"{module} has no place in STAGES"
    return stages[0]


def upward_imports(sources: Sources) -> list[str]:
    pairs = [(module, target) for module in sources for target in imported_modules(module, sources)]
    return [f"{a} imports {b}" for a, b in pairs if part(a) != part(b) and height(a) <= height(b)]


def imports_between_stages(sources: Sources) -> list[str]:
    modules = [module for module in sources if module.startswith("chatsft.data.")]
    pairs = [(module, target) for module in modules for target in imported_modules(module, sources) if target in modules]
    return [f"{a} imports {b}" for a, b in pairs if stage(a) != stage(b)]


def foreign_imports_of_the_model(sources: Sources) -> list[str]:
    def is_allowed(dots: int, name: str) -> bool:
        return dots == 1 if dots else name.split(".")[0] in MODEL_MAY_IMPORT

    modules = [module for module in sources if part(module) == "model"]
    imports = [(module, dots, name) for module in modules for dots, name in imported_names(sources[module])]
    return [f"{module} imports {'.' * dots}{name}" for module, dots, name in imports if not is_allowed(dots, name)]


def import_cycle(sources: Sources) -> list[str]:
    try:
        graphlib.TopologicalSorter({module: imported_modules(module, sources) - {module} for module in sources}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def long_functions(sources: Sources) -> list[str]:
    found = []
    for module, source in sources.items():
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        lengths = [(node.name, node.end_lineno - node.lineno + 1) for node in functions]
        found += [f"{module}.{name} has {length} lines" for name, length in lengths if length > MAX_FUNCTION_LINES]
    return found


def long_files(sources: Sources) -> list[str]:
    lengths = {module: len(source.splitlines()) for module, source in sources.items()}
    return [f"{module} has {length} lines" for module, length in lengths.items() if length > MAX_FILE_LINES]


def vague_names(sources: Sources) -> list[str]:
    return [module for module in sources if VAGUE_NAMES & set(module.replace(".", "_").split("_"))]


CHECKS = (upward_imports, imports_between_stages, foreign_imports_of_the_model, import_cycle, long_functions, long_files, vague_names)


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps(check):
    sources = read_package()
    assert len(sources) > 40
    assert check(sources) == []


@pytest.mark.parametrize(
    ("check", "sources", "found"),
    [
        (
            upward_imports,
            {"chatsft.data.packing": "from chatsft import recipe", "chatsft.recipe": ""},
            "imports chatsft.recipe",
        ),
        (upward_imports, {"chatsft.tasks": "def f():\n    import chatsft.eval", "chatsft.eval": ""}, "tasks imports chatsft.eval"),
        (upward_imports, {"chatsft.model.a": "from .. import b", "chatsft.b": "", "chatsft": ""}, "no place in LAYERS"),
        (upward_imports, {"chatsft.trainer": "import chatsft.callbacks", "chatsft.callbacks": ""}, "imports chatsft.callbacks"),
        (imports_between_stages, {"chatsft.data.packing": "from .collator import A", "chatsft.data.collator": ""}, "data.collator"),
        (foreign_imports_of_the_model, {"chatsft.model.a": "import datasets.load"}, "imports datasets.load"),
        (foreign_imports_of_the_model, {"chatsft.model.a": "from chatsft.model import b"}, "imports chatsft.model.b"),
        (foreign_imports_of_the_model, {"chatsft.model.a": "from ..tasks import b"}, "imports ..tasks.b"),
        (
            import_cycle,
            {"chatsft.tasks.a": "from .b import x", "chatsft.tasks.b": "from . import a", "chatsft.tasks": ""},
            "chatsft.tasks.a",
        ),
        (long_functions, {"chatsft.a": "class A:\n  def f(self):\n" + "    x = 1\n" * 60}, "chatsft.a.f has 61 lines"),
        (long_files, {"chatsft.a": "\n" * 521}, "chatsft.a has 521 lines"),
        (vague_names, {"chatsft.data.mask_utils": ""}, "chatsft.data.mask_utils"),
    ],
)
def test_a_check_finds_what_it_looks_for(check, sources, found):
    try:
        problems = check(sources)
    except AssertionError as error:
        problems = [str(error)]
    assert any(found in problem for problem in problems)


def written_files() -> list[Path]:
    folders = ("chatsft", "tests", "recipes", "docs", "accelerate_configs")
    files = [*REPOSITORY.glob("*"), *(path for folder in folders for path in (REPOSITORY / folder).rglob("*"))]
    return [path for path in files if path.suffix in WRITTEN and "fixtures/" not in str(path)]


def test_no_file_mentions_a_folder_of_somebodys_machine():
    files = written_files()
    assert REPOSITORY / "setup.cfg" in files
    assert Path(__file__) in files
    lines = [(path, line) for path in files for line in path.read_text().splitlines()]
    assert [f"{path.relative_to(REPOSITORY)}: {line}" for path, line in lines if HOME_PATH.search(line)] == []


@pytest.mark.parametrize(("folder", "is_found"), [("home", True), ("work", True), ("tmp", False)])
def test_such_a_folder_is_recognised(folder, is_found):
    assert bool(HOME_PATH.search(f"look in /{folder}/someone/data")) is is_found
    assert not HOME_PATH.search(f"recipes/{folder}/someone")


def test_the_map_in_the_readme_names_every_part_and_nothing_else():
    package = REPOSITORY / "chatsft"
    shown = (REPOSITORY / "README.md").read_text().partition("## Read the code")[2]
    parts = {path.name for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {"__init__.py"}
    assert {part for part in parts if part not in shown} == set()
    assert {name for name in re.findall(r"\w+\.py", shown) if not list(package.rglob(name))} == set()
