"""A workspace with the shape of the pipeline and trivial commands: real DVC, real git."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.config import Config

from stages.core.yaml_files import dump_yaml, read_yaml

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.invalid",
}
# waits while a file of its key is in hold/, fails while one is in fail/; neither is a dependency
WORK = """
set -e
echo "$2: step 1 of 2, reward 0.50, 1 s to go"
shared=${MED_R1_SLOTS_PER_GPU:+ shared by $MED_R1_SLOTS_PER_GPU}
echo "GPUs '$CUDA_VISIBLE_DEVICES'$shared" >> "seen-$1-$2.log"
while [ -e "hold/$2" ]; do sleep 0.05; done
if [ -e "fail/$2" ]; then python fail.py "$2" "fail/$2"; fi
mkdir -p "$1"
cat "$3" > "$1/$2.txt.part"
mv "$1/$2.txt.part" "$1/$2.txt"
"""
# fails like a stage, with the exit code in the file, by default that of bad input
FAIL = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from stages.core.cli import run_stage
from stages.core.errors import ExitCode, ReportedError
def main():
    code = ExitCode(int(Path(sys.argv[2]).read_text() or ExitCode.INPUT))
    print(f"error: {{sys.argv[1]}} has no luck")
    raise ReportedError(code, f"{{sys.argv[1]}} has no luck")
run_stage(main)
"""


def run(*command: str, cwd: Path, code: int = 0, more: Mapping[str, str] | None = None) -> str:
    process = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT | dict(more or {}), capture_output=True, text=True
    )
    output = process.stdout + process.stderr
    assert process.returncode == code, output[-4000:]
    return output


def make_workspace(root: Path, keys: Sequence[str] = ("a", "b", "c")) -> Path:
    """Stages split -> train@<key> -> evaluate@<key> -> report, committed and never run."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "work.sh").write_text(WORK, encoding="utf-8")
    (root / "fail.py").write_text(FAIL, encoding="utf-8")
    (root / "corpus.txt").write_text("first\n", encoding="utf-8")
    for folder in ("hold", "fail"):
        (root / folder).mkdir()
    (root / "dvc.yaml").write_text(dump_yaml(_pipeline(list(keys))), encoding="utf-8")
    (root / "params.yaml").write_text("rate: 1\n", encoding="utf-8")
    (root / ".gitignore").write_text(".scratch/\n/hold\n/fail\n*.log\n", encoding="utf-8")
    (root / ".dvc").mkdir()
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    run("git", "init", "-q", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-q", "-m", "a pipeline", cwd=root)
    return root


def copy_folder(template: Path, to: Path) -> Path:
    """A copy of a workspace, or of what it lies in, at `to`."""
    return Path(shutil.copytree(template, to, symlinks=True))


def init_repository(root: Path) -> None:
    """An empty git repository with the files that `dvc init` writes."""
    run("git", "init", "-q", cwd=root)
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").touch()
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    (root / ".dvcignore").touch()


def add_remote(root: Path, folder: Path) -> None:
    """Add a folder as DVC's default remote `shared`, as `dvc remote add` does."""
    with Config(str(root / ".dvc")).edit() as config:
        config["remote"]["shared"] = {"url": str(folder)}
        config["core"]["remote"] = "shared"


def _pipeline(keys: list[str]) -> dict[str, Any]:
    parts = " ".join(keys)
    return {
        "stages": {
            "split": {
                "cmd": (
                    f"mkdir -p parts && for key in {parts}; do cat corpus.txt > parts/$key.txt;"
                    " echo $key >> parts/$key.txt; done"
                ),
                "deps": ["corpus.txt"],
                "outs": [f"parts/{key}.txt" for key in keys],
                "meta": {"gpus": 0, "minutes": 1},
            },
            "train": {
                "foreach": keys,
                "do": {
                    "desc": "Train ${item}",
                    "cmd": "sh work.sh models ${item} parts/${item}.txt",
                    "deps": ["parts/${item}.txt"],
                    "params": ["rate"],
                    "outs": ["models/${item}.txt"],
                    "meta": {"gpus": 1, "minutes": 2},
                },
            },
            "evaluate": {
                "foreach": keys,
                "do": {
                    "cmd": "sh work.sh predictions ${item} models/${item}.txt",
                    "deps": ["models/${item}.txt"],
                    "outs": ["predictions/${item}.txt"],
                    "meta": {"gpus": 1, "minutes": 1},
                },
            },
            "report": {
                "cmd": "cat predictions/*.txt > report.txt",
                "deps": ["predictions"],
                "outs": ["report.txt"],
                "meta": {"gpus": 0, "minutes": 1},
            },
        }
    }


def locked(root: Path) -> dict[str, dict[str, str]]:
    """Stage -> path -> md5 of its outputs, from dvc.lock."""
    path = root / "dvc.lock"
    stages = read_yaml(path)["stages"] if path.is_file() else {}
    return {
        name: {out["path"]: out["md5"] for out in stage["outs"]} for name, stage in stages.items()
    }


def eventually(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait until a condition holds; whether it does."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()
