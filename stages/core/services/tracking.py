"""Runs in Weights & Biases: what a stage measures, as it measures it.

No result depends on it, and none is lost when it fails.

A run has the name of its checkpoint, in the group of its checkpoint, so that training and test
stand together; its configuration is the provenance of the result, its artifacts hold the hashes of
data and models, not those themselves. What wandb gathers of its own accord, of host, user, paths,
command line, console, source code, is turned off.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from stages.core import layout
from stages.core.errors import InputError
from stages.core.params import Params, Tracking
from stages.core.services.hub import format_error
from stages.core.services.secrets import find_leaked_secret

INIT_SECONDS: Final = 30
"""Seconds to wait for the server before a run is kept on the disk instead."""
FINISH_SECONDS: Final = 10
"""Seconds to wait for the end of an upload; the rest stays on the disk."""
_MODES: Final = {"online": "online", "offline": "offline", "dryrun": "offline", "disabled": "none"}
"""What WANDB_MODE may be -> what it means here."""


class TrackingRun:
    """A tracking run; all methods are no-ops if tracking is off or has failed."""

    def __init__(self, run: Any = None) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        self._try("log", lambda run: run.log(dict(values), step=step))

    def summarise(self, values: Mapping[str, float]) -> None:
        """Numbers of the whole run."""
        self._try("summary", lambda run: run.summary.update(dict(values)))

    def artifact(
        self,
        name: str,
        kind: Literal["dataset", "model", "predictions"],
        hashes: Callable[[], Mapping[str, str | None]],
    ) -> None:
        """Log hashes as an artifact: a new version if any of them changed."""

        def log(run: Any) -> None:
            import wandb

            digests = dict(hashes())
            artifact = wandb.Artifact(name, type=kind, metadata=digests)
            with artifact.new_file("hashes.json", encoding="utf-8") as file:
                json.dump(digests, file, indent=1, sort_keys=True)
            run.log_artifact(artifact)

        self._try("artifact", log)

    def finish(self, code: int) -> None:
        """Close it; code 0 if all went well."""
        self._try("finish", lambda run: run.finish(exit_code=code))
        self._run = None

    def _try(self, what: str, call: Any) -> None:
        if self._run is None:
            return
        try:
            call(self._run)
        except Exception as error:  # whatever becomes of wandb, hours of training are worth more
            self._run = None
            print(
                f"wandb: {what} failed ({format_error(error)}): no more is reported of this run;"
                " its results are whole",
                file=sys.stderr,
            )


def check_tracking(tracking: Tracking) -> None:
    """Raise InputError early if online tracking lacks an API key; a rejected key means offline."""
    if _mode(tracking) != "online":
        return
    try:
        known = _wandb().login(prompt=False)
    except Exception as error:  # it does not tell a wrong key from a server that does not answer
        print(
            f"wandb: cannot log in ({format_error(error)}): runs are kept on the disk",
            file=sys.stderr,
        )
        os.environ["WANDB_MODE"] = "offline"
        return
    if not known:
        raise InputError(
            "tracking.wandb is online, and no key for it is here: set WANDB_API_KEY in the"
            " environment, run `wandb login`, or set tracking.wandb to offline and send runs later"
            " (`wandb sync`)"
        )


@contextmanager
def tracked(
    params: Params,
    job: Literal["train", "evaluate", "report"],
    name: str,
    config: Mapping[str, Any],
    *,
    identity: str,
    active: bool = True,
) -> Iterator[TrackingRun]:
    """The tracking run of one job; a no-op if tracking is off or `active` is false (other ranks).

    Its tags are the answer style and, of a checkpoint that is trained, axis, split and method.
    `identity` tells runs of other settings apart: a job that was killed and goes on is one run.
    Raises InputError if the configuration holds a secret of the environment.
    """
    tracking = params.tracking
    mode = _mode(tracking)
    if mode == "none" or not active:
        yield TrackingRun()
        return
    text = json.dumps(config, sort_keys=True)
    if variable := find_leaked_secret(text.encode()):
        raise InputError(
            f"the settings hold the value of ${variable}, a secret, which would go to wandb: take"
            " it out of params.yaml"
        )
    entry = params.checkpoints.get(name)
    tags = [params.prompt.style, *([entry.axis, entry.split, entry.method] if entry else [])]
    run = _begin(
        tracking,
        mode,
        job,
        name,
        config,
        tags,
        f"{name}-{job}-{hashlib.sha256(f'{identity}{text}'.encode()).hexdigest()[:12]}",
    )
    try:
        yield run
    except BaseException:
        run.finish(1)
        raise
    run.finish(0)


def _begin(
    tracking: Tracking,
    mode: str,
    job: str,
    name: str,
    config: Mapping[str, Any],
    tags: list[str],
    run_id: str,
) -> TrackingRun:
    """A run, online if that is wanted and the server answers; else on the disk."""
    wandb = _wandb()
    (layout.SCRATCH / "wandb").mkdir(parents=True, exist_ok=True)
    # keep wandb's files out of the home folder
    for variable in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        os.environ.setdefault(variable, str((layout.SCRATCH / "wandb").resolve()))
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        finish_timeout=FINISH_SECONDS,
        # do not send the host name
        host="",
        init_timeout=INIT_SECONDS,
        program="",
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_save_requirements=False,
    )
    for each in dict.fromkeys((mode, "offline")):
        try:
            run = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                name=name,
                group=name,
                job_type=job,
                id=run_id,
                resume="allow" if each == "online" else None,
                dir=str(layout.SCRATCH.resolve()),
                config=dict(config),
                tags=tags,
                mode=each,
                settings=settings,
            )
        except Exception as error:
            then = (
                "the run is kept on the disk"
                if each == "online"
                else "nothing is reported of this run"
            )
            print(f"wandb: cannot begin {each} ({format_error(error)}): {then}", file=sys.stderr)
            continue
        where = (
            run.url
            if each == "online"
            else f"kept in {os.path.relpath(Path(run.dir).parent)}; `wandb sync` sends it"
        )
        print(f"wandb: {name}, {job}: {where}", file=sys.stderr)
        return TrackingRun(run)
    return TrackingRun()


def _mode(tracking: Tracking) -> str:
    """none, offline or online; WANDB_MODE says otherwise where tracking is on."""
    if tracking.wandb == "none":
        return "none"
    mode = os.environ.get("WANDB_MODE") or tracking.wandb
    if mode not in _MODES:
        raise InputError(
            f"WANDB_MODE = {mode!r} in the environment: allowed are {', '.join(_MODES)}"
        )
    return _MODES[mode]


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            f"tracking.wandb is on, and wandb cannot be imported ({error}): `make install`, or set"
            " it to none"
        ) from error
    return wandb
