"""Images of several kinds are decoded side by side by threads that import their readers first."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.dicoms import phantom, series
from tests.volumes import nifti, phantom_affine

SCRIPT = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stages.core.params import load_params
from stages.corpus.dicom.headers.modality import declared_modality
from stages.corpus.images.files import decode_files
from stages.corpus.records.patients import ids_of_file

is_under_way = threading.Event()

class Slow:
    def find_spec(self, name, path=None, target=None):
        # pydicom itself is not complete then, but some of its modules are
        if name == "pydicom.dataset":
            is_under_way.set()
        if name.startswith("pydicom"):
            time.sleep(0.005)

sys.meta_path.insert(0, Slow())
params = load_params()
slices = [path.read_bytes() for path in sorted(Path("series").iterdir())]
volume = Path("volume.nii").read_bytes()
work = {
    "ids": lambda: ids_of_file(slices[0]),
    "modality": lambda: declared_modality(slices[0]),
    "dicom": lambda: decode_files(slices, params.resize, params.dicom, folder=True),
    "nifti": lambda: decode_files([volume], params.resize, params.dicom),
}

def second():
    is_under_way.wait()
    return work[sys.argv[2]]()

with ThreadPoolExecutor(2) as pool:
    for result in [pool.submit(work[sys.argv[1]]), pool.submit(second)]:
        result.result()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml, a DICOM series and a NIfTI file."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (folder / "series").mkdir()
    for number, content in enumerate(series(phantom())):
        (folder / "series" / f"{number}.dcm").write_bytes(content)
    (folder / "volume.nii").write_bytes(nifti(phantom(), phantom_affine()))
    return folder


@pytest.mark.parametrize(("first", "second"), [("nifti", "ids"), ("dicom", "modality")])
def test_a_thread_may_import_a_reader_while_another_one_does(
    images: Path, first: str, second: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, first, second],
        cwd=images,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_readers_are_imported_under_the_lock() -> None:
    """In all packages that read: any of their functions may be one that `prefetch` runs."""
    corpus = ROOT / "stages" / "corpus"
    unlocked = []
    for file in sorted(corpus.rglob("*.py")):
        if not file.is_relative_to(corpus / "sample"):  # writes the sample, in one thread
            unlocked += _unlocked_imports(file)
    assert unlocked == []


def test_an_import_without_the_lock_is_found(tmp_path: Path) -> None:
    file = tmp_path / "reader.py"
    file.write_text(
        "import pydicom\n"
        "def locked():\n    with IMPORT_LOCK:\n        from nibabel import affines\n"
        "def unlocked():\n    if True:\n        import nibabel.affines\n"
        "def also():\n    from stages.corpus.volumes.stacks import FrameStack\n",
        encoding="utf-8",
    )
    assert [place.rpartition(":")[2] for place in _unlocked_imports(file)] == ["7", "9"]


def _unlocked_imports(file: Path) -> list[str]:
    """Imports of readers within functions of a file that hold no IMPORT_LOCK, as file:line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: list[str] = []

    def visit(node: ast.AST, *, called: bool, locked: bool) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom) and called and not locked:
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            if any(_is_reader(module) for module in modules):
                found.append(f"{file}:{node.lineno}")
        if isinstance(node, ast.With):
            held = [item.context_expr for item in node.items]
            locked |= any(isinstance(each, ast.Name) and each.id == "IMPORT_LOCK" for each in held)
        called |= isinstance(node, ast.FunctionDef)
        for child in ast.iter_child_nodes(node):
            visit(child, called=called, locked=locked)

    visit(tree, called=False, locked=False)
    return found


def _is_reader(module: str) -> bool:
    readers = ("pydicom", "nibabel", "stages.corpus.dicom", "stages.corpus.volumes")
    return any(module == name or module.startswith(f"{name}.") for name in readers)
