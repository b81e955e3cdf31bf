"""Evaluate the champion's weights on the challenger's test questions.

Runs the command of stage evaluate in a folder of links to the workspace that has its own `models/`,
with the champion's weights in the challenger's place, and its own `predictions/`. So the two
evaluations differ only in the weights, and the workspace stays unchanged but for the cache of
answers, where what the champion has answered before is found and the rest is added.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pandas as pd

from flows.dvc_api.graph import read_graph
from flows.dvc_api.lock_file import read_locked_stages
from flows.dvc_api.preloading import preloaded_libraries
from flows.dvc_api.runner import Runner, StageError
from flows.registry import champion as champions
from flows.registry.champion import Champion
from flows.retraining.context import Retraining
from stages.core import layout
from stages.core.errors import InputError
from stages.reporting.sources import read_predictions

FOLDER: Final = layout.FLOWS / "duel"
_OWN: Final = {layout.MODELS.name, layout.PREDICTIONS.name, layout.SCRATCH.name, ".git", ".dvc"}
"""Entries of the workspace that are not linked."""


class ChampionEvaluation:
    """Evaluates champions in one workspace; `stop` ends running evaluations and prevents others."""

    def __init__(self, root: Path, variables: Mapping[str, str] | None = None) -> None:
        """`variables`: in the environment of all evaluations."""
        self.root = root
        self._runner = Runner(root, variables)

    @property
    def stopped(self) -> bool:
        """Was `stop` called."""
        return self._runner.stopped

    def weights(self, checkpoint: str) -> Path:
        """Folder for the champion's weights, to be filled before `evaluate`."""
        return self.root / FOLDER / checkpoint / layout.model(checkpoint)

    def evaluate(
        self,
        checkpoint: str,
        report: Callable[[str], None],
        extra: Mapping[str, str] | None = None,
        inherit_fds: Iterable[int] = (),
    ) -> Path:
        """Run evaluate@<checkpoint> with the champion's weights; the path of its predictions.

        Output lines go to `report`; `extra` and `inherit_fds` as in Runner.run. StageError if it
        fails, StoppedError if it was stopped.
        """
        folder = self.root / FOLDER / checkpoint
        if not self.weights(checkpoint).is_dir():
            raise InputError(
                f"{self.weights(checkpoint)} is missing: fetch the champion's weights first"
            )
        try:
            command = read_locked_stages(self.root)[f"evaluate@{checkpoint}"].shell_command
        except KeyError:
            raise InputError(
                f"dvc.lock has no evaluate@{checkpoint}: run `dvc repro evaluate@{checkpoint}`"
            ) from None
        for entry in self.root.iterdir():
            if entry.name not in _OWN:
                link = folder / entry.name
                link.unlink(missing_ok=True)
                link.symlink_to(entry, target_is_directory=entry.is_dir())
        cache = folder / layout.ANSWER_CACHE
        if not cache.is_symlink():
            (self.root / layout.ANSWER_CACHE).mkdir(parents=True, exist_ok=True)
            cache.parent.mkdir(exist_ok=True)
            cache.symlink_to(self.root / layout.ANSWER_CACHE, target_is_directory=True)
        predictions = folder / layout.predictions(checkpoint)
        predictions.unlink(missing_ok=True)
        self._runner.run_command(
            f"champion@{checkpoint}",
            ["sh", "-c", command],
            report,
            folder=folder,
            extra=extra,
            inherit_fds=inherit_fds,
        )
        if not predictions.is_file():
            raise StageError(
                f"champion@{checkpoint}: `{command}` wrote no {layout.predictions(checkpoint)}"
            )
        return predictions

    def clear(self) -> None:
        """Delete the weights and predictions of all evaluations."""
        shutil.rmtree(self.root / FOLDER, ignore_errors=True)

    def stop(self) -> None:
        """End running evaluations and prevent further ones."""
        self._runner.stop()


def evaluate_champion(
    run: Retraining, champion: Champion, names: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """The champion's predictions per checkpoint on the current test questions, in GPU slots.

    Nothing of the evaluations remains in the workspace, also if one fails.
    """
    if names:
        run.report(
            f"evaluating champion {champion.version} on the challengers' test questions:"
            f" {', '.join(names)}"
        )
    stages = [f"evaluate@{name}" for name in names]
    with preloaded_libraries(run.root, stages, run.slots.cpu_environment) as variables:
        evaluation = ChampionEvaluation(run.root, variables)
        try:
            return _evaluate_side_by_side(run, evaluation, champion, names)
        finally:
            evaluation.clear()


def _evaluate_side_by_side(
    run: Retraining, evaluation: ChampionEvaluation, champion: Champion, names: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Predictions per checkpoint; if one evaluation fails, the others are stopped."""
    graph = read_graph(run.root)

    def evaluate(name: str) -> pd.DataFrame:
        champions.checkout(run.root, name, evaluation.weights(name), champion.version)
        gpus = graph.stages[f"evaluate@{name}"].gpus
        if gpus:
            with run.slots.acquire(gpus, lambda: evaluation.stopped) as (gpu_names, locks):
                extra = run.slots.environment(gpu_names)
                path = evaluation.evaluate(name, run.report, extra, locks)
        else:
            path = evaluation.evaluate(name, run.report)
        return read_predictions(path, f"evaluate@{name}")[0]

    with ThreadPoolExecutor(max(len(run.slots.names), 1)) as pool:
        try:
            return dict(zip(names, pool.map(evaluate, names), strict=True))
        except BaseException:
            evaluation.stop()  # before the pool waits for running evaluations
            raise
