"""Frozen data that every layer shares: clips, sizes, jobs, estimates and records. Standard library only, so that `--help` and `report` stay fast.

A record is one JSON object on one line of `results/<machine>/<suite>.jsonl`. Every field names its unit. A value that could not be
measured is null with a reason beside it, never 0.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitgs.errors import UsageError

FORMAT = 1

Kind = Literal["train", "eval", "measure"]
Status = Literal["measured", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """The shape of one input clip `(frames, channels, height, width)` and its classes; a mapping means several heads, concatenated in order."""

    frames: int
    height: int
    width: int
    channels: int = 3
    classes: int | Mapping[str, int] = 400
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "channels"):
            if getattr(self, name) < 1:
                raise UsageError(f"a clip's {name} must be at least 1", given=getattr(self, name), remedy=f"set {name} to 1 or more")

    @property
    def class_count(self) -> int:
        """Length of the logits: the sum over all heads."""
        return self.classes if isinstance(self.classes, int) else sum(self.classes.values())

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.frames, self.channels, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Views:
    """How often a model looks at one video when it is tested: clips in time, and crops of each. A video costs that many times a view."""

    clips: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.clips < 1 or self.crops < 1:
            raise UsageError("a video is seen in at least one clip of one crop", given=str(self), remedy="use 1x1")

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"

    @property
    def count(self) -> int:
        return self.clips * self.crops


@dataclass(frozen=True, kw_only=True)
class Size:
    """One row of the table of transformer sizes: width D, block count, heads H, hidden width of the MLP as a multiple of D."""

    name: str
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one fresh process does. Everything that its outcome depends on is in here; its hash is its name.

    `knobs` are the build knobs, defaults written out; `run` the run knobs that evaluation or measurement sets; `rule` how run knobs were drawn
    in training; `options` what belongs to one kind only (recipe, batch, device, split, checkpoint's train job).
    """

    kind: Kind
    suite: str
    profile: str
    system: str
    size: str
    style: str
    clip: Clip
    knobs: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    rule: Literal["elastic", "paper", "none"] = "none"
    seed: int = 0
    start: str = "random"
    data: str = ""
    purpose: Literal["tune", "final", "cost"] = "final"
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return digest(to_json(self))

    @property
    def label(self) -> str:
        """For people: system, knobs that were set, data, seed."""
        knobs = ",".join(f"{k}={v}" for k, v in {**self.knobs, **self.run}.items())
        return f"{self.kind} {self.system}({knobs}) {self.data} seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured value with its 95 % interval and raw samples, or None with the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    samples: tuple[float, ...] = ()
    method: str = ""
    reason: str = ""

    @classmethod
    def missing(cls, reason: str) -> Estimate:
        return cls(value=None, reason=reason)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One row: the job, how it ended, what it found, and all that is needed to trace and repeat it. `result`'s fields depend on the job's kind."""

    job: Job
    attempt: int
    status: Status
    reason: str = ""
    flags: tuple[str, ...] = ()
    code_version: str = ""
    started_utc: str = ""
    seconds: float = 0.0
    result: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    replay: str = ""
    format: int = FORMAT

    @property
    def id(self) -> str:
        return digest({"job": to_json(self.job), "attempt": self.attempt})


def to_json(value: Any) -> Any:
    """Plain JSON types from dataclasses, mappings and tuples; keys of mappings sorted where order carries no meaning."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return value


def digest(value: Any) -> str:
    """Sixteen hex digits that name a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def record_line(record: Record) -> str:
    """One line of a results file, without its line break."""
    return json.dumps({"id": record.id, **to_json(record)}, separators=(",", ":"), allow_nan=False)


def job_from(data: Mapping[str, Any]) -> Job:
    """A job from its JSON form."""
    clip = dict(data["clip"])
    if clip.get("class_names") is not None:
        clip["class_names"] = tuple(clip["class_names"])
    return Job(**{**data, "clip": Clip(**clip)})


def record_from(data: Mapping[str, Any]) -> Record:
    """A record from its JSON form; a newer format is refused, because its fields may mean something else."""
    if data.get("format", 0) > FORMAT:
        raise UsageError(f"a record's format must be at most {FORMAT}", given=data.get("format"), remedy="upgrade vitgs-bench to read these results")
    fields = {k: v for k, v in data.items() if k != "id"}
    return Record(**{**fields, "job": job_from(fields["job"]), "flags": tuple(fields.get("flags", ()))})


def pack_bits(correct: Sequence[bool]) -> str:
    """Which clips were right, as base64 of a bit set, first clip in the lowest bit of the first byte."""
    packed = bytearray((len(correct) + 7) // 8)
    for i, right in enumerate(correct):
        packed[i // 8] |= bool(right) << (i % 8)
    return base64.b64encode(bytes(packed)).decode()


def unpack_bits(packed: str, count: int) -> list[bool]:
    """The inverse of `pack_bits`."""
    data = base64.b64decode(packed)
    return [bool(data[i // 8] >> (i % 8) & 1) for i in range(count)]
