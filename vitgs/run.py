"""One job, carried out in this process: `execute(job) -> Record`. It joins systems, data, training and measuring, and never starts a process.

`python -m vitgs.run JOB.json` is the same by hand: the file holds a job, or a whole row whose job is done again. The last line printed is the record.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitgs import folders, registry
from vitgs.data import open_data
from vitgs.data.source import Source
from vitgs.errors import BrokenOff, UsageError, VitgsError
from vitgs.measure import harness, machine, setting
from vitgs.measure.soundness import NotMeasurable
from vitgs.record import Job, Record, job_from, record_line, to_json
from vitgs.store.code import code_version
from vitgs.store.records import write_beside
from vitgs.store.same import settled
from vitgs.train import start
from vitgs.train.checkpoints import digest_of, load_weights
from vitgs.train.evaluate import evaluate
from vitgs.train.loop import train
from vitgs.train.recipe import recipe_from

Tell = Callable[[float, str], None]
STILLS = "digits:stills"
LEAST_FREE_BYTES = 16 * 2**20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def execute(job: Job, *, attempt: int = 1, results_folder: Path | None = None, tell: Tell | None = None) -> Record:
    """Does the job and returns its row. A job that fails gives a row that says why; only a full disk is raised, as `BrokenOff`.

    `results_folder`: where the groups of evaluated clips are kept, once for each list.
    """
    began, started = datetime.datetime.now(datetime.UTC), time.perf_counter()
    result: Mapping[str, Any] = {}
    environment = machine.describe()
    reason, flags = "", tuple[str, ...]()
    version = ""
    threads = int(job.options["threads"]) if job.kind == "measure" else 1
    try:
        version = code_version(job.system, job.kind)
        with setting.threads(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third parties, and for the developer: tests turn them into errors
            environment = machine.describe()
            result, flags = _WORK[job.kind](job, results_folder, tell)
        json.dumps(result, allow_nan=False)
    except BrokenOff:
        raise
    except Exception as error:  # the process boundary: whatever a system does becomes a row
        _raise_if_full(error)
        reason, flags, result = _reason(error), _flags(error), {}
    record = Record(
        job=job,
        attempt=attempt,
        status="failed" if reason else "measured",
        reason=reason,
        flags=flags,
        code_version=version,
        started_utc=began.isoformat(timespec="seconds"),
        seconds=time.perf_counter() - started,
        result=result,
        environment=environment,
    )
    return replayable(record)


def replayable(record: Record) -> Record:
    """The row with the command that does it again."""
    return Record(**{**{name: getattr(record, name) for name in record.__dataclass_fields__}, "replay": f"vitgs-bench replay {record.id}"})


def checkpoint_file(system: str, train_job: str) -> Path:
    """Where the weights of a train job lie; other code trains into another file, unless it was shown to give the same."""
    return folders.cache() / "checkpoints" / f"{train_job}-{settled(code_version(system, 'train'))}.safetensors"


def image_start(size: str, style: str, height: int, width: int, steps: int, *, threads: int = 1, tell: Tell | None = None) -> Path:
    """The image weights that systems start from: made once, by whoever comes first, while all others wait."""
    folder = folders.cache() / "starts"
    train_stills, val_stills = (open_data(STILLS, split, height=height, width=width) for split in ("train", "val"))
    with _only_one(folder), setting.threads(threads), _full_disk_is_known(folder):
        return start.image_start(size, style, train_stills, val_stills, folder, steps=steps, tell=tell)


def own_start(job: Job, *, tell: Tell | None = None) -> Path:
    """The weights that a system without an image ViT starts from: itself, pretrained on the same stills, once for each set of build knobs."""
    folder = folders.cache() / "starts"
    train_stills, val_stills = (open_data(STILLS, split, height=job.clip.height, width=job.clip.width) for split in ("train", "val"))
    system, steps = registry.get(job.system), int(job.options["start_steps"])
    folder = folder / settled(code_version(job.system, "train"))
    with _only_one(folder), _full_disk_is_known(folder):
        return start.own_start(system, job.size, job.style, job.knobs, train_stills, val_stills, folder, steps=steps, tell=tell)


def open_source(job: Job, split: str) -> Source:
    """The job's data, which must still be what it was when the job was planned."""
    source = open_data(os.path.expandvars(job.data), split, frames=job.clip.frames, height=job.clip.height, width=job.clip.width)
    planned = job.options.get("data_digest", source.digest)
    if source.digest != planned:
        raise UsageError(
            f"{job.data} must be unchanged since the job was planned", given=f"digest {source.digest}, not {planned}", remedy="run the sweep again"
        )
    return source


def _build(job: Job, system_name: str, knobs: Mapping[str, Any]) -> nn.Module:
    torch.manual_seed(job.seed)
    return registry.get(system_name).build(job.size, job.clip, job.style, **knobs)


def _train(job: Job, results_folder: Path | None, tell: Tell | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    del results_folder
    model = _build(job, job.system, job.knobs)
    started_from = ""
    if job.start == "shared":
        weights = image_start(job.size, job.style, job.clip.height, job.clip.width, int(job.options["start_steps"]), tell=tell)
        start.apply(model, weights)
        started_from = weights.name
    elif job.start == "own-same-stills":
        weights = own_start(job, tell=tell)
        start.apply_own(model, weights)
        started_from = weights.name
    elif job.start != "random":
        raise UsageError(
            "a system must start from the shared image weights, from the same stills or at random",
            given=f"{job.system} asks for {job.start}",
            remedy="set start = shared",
        )
    file = checkpoint_file(job.system, job.id)
    source = open_source(job, "train")
    result = train(
        model,
        registry.get(job.system),
        source,
        open_source(job, "val"),
        recipe_from(job.options["recipe"], where="the job's recipe"),
        rule=job.rule,
        run_values={name: tuple(values) for name, values in job.options.get("run_values", {}).items()},
        seed=job.seed,
        folder=file.parent,
        name=file.stem,
        device=job.options.get("device", "cpu"),
        tell=tell,
    )
    return {**to_json(result), "started_from": started_from, "split": "train", **_facts(source)}, ()


def _evaluate(job: Job, results_folder: Path | None, tell: Tell | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    del tell
    file = checkpoint_file(job.system, job.options["train_job"])
    if not file.is_file():
        raise UsageError("an eval job needs the weights of its train job", given=f"no {file.name}", remedy="run the sweep again")
    model = _build(job, job.system, job.knobs)
    model.load_state_dict(load_weights(file))
    device, source = job.options.get("device", "cpu"), open_source(job, job.options["split"])
    repeat = registry.get(job.system).repeat
    result = evaluate(model.to(device), source, run=job.run, repeat=repeat, clips=job.options["clips"] or None, device=device)
    if results_folder is not None and not (sidecar := results_folder / f"groups-{result.groups}.json").is_file():
        write_beside(sidecar, json.dumps({"groups": result.group_index}, separators=(",", ":")))
    kept = {name: value for name, value in to_json(result).items() if name != "group_index"}
    return {**kept, "checkpoint_digest": digest_of(file), **_facts(source)}, ()


def _facts(source: Source) -> dict[str, Any]:
    """How many sources each split has, and which videos could not be decoded: a row whose clips vanished says so."""
    described = source.describe()
    return {"counts": described["counts"], "left_out": described.get("left_out", [])}


def _measure(job: Job, results_folder: Path | None, tell: Tell | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    del results_folder, tell
    options = job.options
    result = harness.measure(
        _build(job, job.system, job.knobs),
        clip=job.clip,
        run=job.run,
        anchor=_build(job, "vit_mean", options["anchor"]),
        batch=options["batch"],
        device=options["device"],
        dtype=options["dtype"],
        seconds=options["seconds"],
        target=options["target"],
        content=_content(open_source(job, "val")) if job.data else None,
        threads=options["threads"],
        witnesses=True,
        energy_window_s=options["energy_window_s"] or None,
        seed=job.seed,
    )
    return to_json(result), result.flags


def _content(source: Source) -> Callable[[int], Tensor]:
    return lambda count: torch.cat([part.clip_BTCHW for part in source.evaluation(count)])


_WORK: Mapping[str, Callable[[Job, Path | None, Tell | None], tuple[dict[str, Any], tuple[str, ...]]]] = {
    "train": _train,
    "eval": _evaluate,
    "measure": _measure,
}


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, VitgsError) else f"{type(error).__name__}: {text}"


def _flags(error: Exception) -> tuple[str, ...]:
    if isinstance(error, NotMeasurable):
        return error.flags
    out = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
    return ("oom",) if out else ()


@contextlib.contextmanager
def _full_disk_is_known(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _raise_if_full(error, folder)
        raise


def _raise_if_full(error: Exception, folder: Path | None = None) -> None:
    """A full disk is no fault of the job. Writers of weights report it in their own words, so the disk itself is asked too."""
    folder = folder or folders.cache()
    full = isinstance(error, OSError) and error.errno in _NO_ROOM
    if not full and ("No space left" in str(error) or (isinstance(error, RuntimeError) and "write" in str(error))):
        with contextlib.suppress(OSError):
            full = "No space left" in str(error) or shutil.disk_usage(folder).free < LEAST_FREE_BYTES
    if full:
        place = folders.portable(folder)
        raise BrokenOff("checkpoints must fit on the disk", given=f"{place} is full", remedy="free space, then run the same command again") from error


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: list[str] | None = None) -> int:
    """Does the job of a file and prints its record."""
    parser = argparse.ArgumentParser(prog="python -m vitgs.run", description=execute.__doc__)
    parser.add_argument("file", type=Path, help="JSON of a job, or of a row")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--results", type=Path, help="folder for the groups of evaluated clips")
    given = parser.parse_args(arguments)
    try:
        data = json.loads(given.file.read_text(encoding="utf-8"))
        record = execute(job_from(data.get("job", data)), attempt=given.attempt, results_folder=given.results)
    except VitgsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        rule = "the file must hold the JSON of one job or row"
        print(
            f"error: {UsageError(rule, given=f'{type(error).__name__} in {given.file.name}', remedy='copy a line of a results file')}",
            file=sys.stderr,
        )
        return 2
    print(record_line(record))
    return 0 if record.status == "measured" else 1


if __name__ == "__main__":
    sys.exit(main())
