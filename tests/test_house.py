"""The house rules that a machine can check: arrows, sizes, lazy imports, links, dependencies."""

import ast
import configparser
import graphlib
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for package in ("shards", "toolkit", "launch") for path in (ROOT / package).rglob("*.py")
)
TESTS = sorted((ROOT / "tests").glob("*.py"))
AUDIO_SIDE = ("torchaudio", "librosa", "soundfile", "av", "soxr", "pyloudnorm", "webdataset")
HEAVY = ("torch", "sklearn", "matplotlib", *AUDIO_SIDE)

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def name_of(path: Path) -> str:
    """`shards/sources/__init__.py` is `shards.sources`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The modules that import statements among `nodes` may load, `from a import b` as a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def all_imports(path: Path) -> set[str]:
    return set(imports_of(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("package", ["shards", "toolkit"])
def test_help_loads_nothing_heavy(package: str) -> None:
    done = python("-X", "importtime", "-m", package, "--help")
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    assert "Usage" in done.stdout
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    assert package in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.slow
def test_a_step_needs_no_audio_library_and_loads_neither_compiler_nor_fsdp() -> None:
    step = f"""if True:
        import sys
        sys.modules.update(dict.fromkeys({AUDIO_SIDE}))
        import torch, shards.loader, toolkit.loop
        from toolkit import fused, models, optim, schema
        model = torch.nn.Linear(1, 1)
        optimizer = optim.make_optimizer(model, schema.OptimConfig())
        model(torch.ones(1, 1)).sum().backward()
        fused.FusedStep(optimizer)()
        for name, more in (("cnn_small", {{}}), ("vit_small", {{"conv_stem": True}})):
            with torch.device("meta"):  # as launch.submit and launch.local build one
                models.build(schema.ModelConfig(name=name, **more), 2, (64, 64))
        heavy = {{"torch._dynamo", "torch.distributed.fsdp", "sklearn", "matplotlib", "triton"}}
        sys.exit(f"loaded: {{heavy & sys.modules.keys()}}" if heavy & sys.modules.keys() else 0)
    """
    done = python("-c", step)
    assert done.returncode == 0, done.stderr.splitlines()[-1]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows_run_one_way(path: Path) -> None:
    above = {"shards": {"toolkit", "launch", "train"}, "toolkit": {"launch", "train"}}
    package = name_of(path).partition(".")[0]
    reached = {name.partition(".")[0] for name in all_imports(path)}
    assert not reached & (above.get(package, {"train"}) | {"tests", "bench"})


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {name_of(path): path for path in SOURCES}
    graph = {
        name: set(imports_of(ast.parse(path.read_text(encoding="utf-8")).body)) & modules.keys()
        for name, path in modules.items()
    }
    for name, reached in graph.items():
        reached.discard(name)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=name_of)
def test_a_file_is_a_noun_of_readable_length(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 280


def declared() -> set[str]:
    """The distributions that setup.cfg names, required or in an extra, in their normal form."""
    lines = SETUP["options"]["install_requires"].splitlines()
    for extra in SETUP["options.extras_require"].values():
        lines += extra.splitlines()
    names = (match[0] for line in lines if (match := re.match(r"[\w.-]+", line)))
    return {normal(name) for name in names}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_import_is_declared() -> None:
    # Python 3.10 does not find scikit-learn's packages by its list of files, as later ones do.
    known = {"sklearn": ["scikit-learn"], **importlib.metadata.packages_distributions()}
    ours = {"shards", "toolkit", "launch", "train", *sys.stdlib_module_names}
    names = {name.partition(".")[0] for path in SOURCES for name in all_imports(path)} - ours
    assert {"numpy", "torch"} <= names
    undeclared = {
        name
        for name in names
        if not {normal(distribution) for distribution in known.get(name, [name])} & declared()
    }
    assert not undeclared


def test_console_scripts_lead_to_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    scripts = SETUP["options.entry_points"]["console_scripts"].strip().splitlines()
    assert len(scripts) == 2
    for script in scripts:
        module, function = script.partition("=")[2].strip().split(":")
        assert getattr(importlib.import_module(module), function)(["--help"]) == 0
        assert "Usage" in capsys.readouterr().out


def documents() -> list[Path]:
    folders = ("docs", "configs", "bench", "launch", "slurm", "shards", "toolkit")
    inner = (path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return sorted([*ROOT.glob("*.md"), *inner])


def anchors(document: Path) -> set[str]:
    """The #names that GitHub gives to the headings of a document."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.*?) *$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = document.parent / file if file else document
        assert target.exists(), f"{document.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{document.name}: {link}"


def test_there_are_documents_and_configs() -> None:
    names = {document.name for document in documents()}
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"} <= names
    assert (ROOT / "configs" / "demo.yaml").is_file()


def test_changelog_knows_this_version() -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "shards/__init__.py").read_text())
    assert version and version[1] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
