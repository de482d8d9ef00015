"""What four counters say of every system: MACs at sizes Ti, S and B, 8 and 16 frames, 224 px, and which operators the public ones leave out.

    .venv/bin/python -m tests.benchmarks.counters --out results/counters.json --table reports/counters.md

Each cell is counted in a fresh process by `vitgs.measure.cost`, as `vitgs-bench cost --explain` does: torch's counter and our formula by shapes,
fvcore and ptflops by real runs on CPU. The record grows cell by cell, small sizes first, and the same command goes on where it was. A run that asks
for some cells (`--systems dualpath --sizes Ti`) leaves the other rows of record and table as they are; rows of an earlier code are marked.

A cell is in order when all counters agree within 1 %, or when each one that doesn't names operators that make up the difference: with what our
formula counts for those, it has to come within 1 % too. Exit code 1 when a cell is not. A system whose cost depends on the clip is counted on one
clip of noise with random weights, both from seed 0, and its number belongs to this clip.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Container, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import Row, name_of
from vitgs import registry
from vitgs.errors import UsageError, VitgsError
from vitgs.measure import machine
from vitgs.measure.cost import TOLERANCE, Cost
from vitgs.measure.witnesses import NAMES as WITNESSES
from vitgs.measure.witnesses import near
from vitgs.numbers import percent, quantity
from vitgs.record import Clip, to_json
from vitgs.store.code import version_with

SIZES, FRAMES = ("Ti", "S", "B"), (8, 16)
COUNTING = ("vitgs.measure.cost",)  # what a count depends on beside the system: no clock, no memory
VERDICTS = {
    "agree": "all four counters agree within 1 %",
    "named": "agree within 1 % once the operators that a witness left out, by name, are added",
    "silent": "a witness could not count the model",
    "failed": "failed",
    "refused": "refused: the system can't be built so",
}
WRONG = ("silent", "failed")


def counted(system: str, size: str, frames: int, resolution: int, classes: int) -> Row:
    """What one cell says; to be run in a process of its own, since counters patch packages."""
    import torch

    from vitgs.measure import cost

    began_s = time.process_time()
    torch.manual_seed(0)
    clip = Clip(frames=frames, height=resolution, width=resolution, classes=classes)
    chosen = registry.get(system)
    try:
        model = chosen.build(size, clip).eval()
    except VitgsError as error:
        return {"status": "refused", "reason": str(error)}
    view_1TCHW = torch.randn((1, *clip.shape), generator=torch.Generator().manual_seed(0))
    found = cost.count(model, view_1TCHW, {}, witnesses_too=True)
    return {
        "status": "measured",
        "reason": found.reason,
        "content": chosen.content,
        "device": found.device,
        "params": found.params,
        "macs": found.macs,
        "counters": dict(found.counters),
        "uncounted": list(found.uncounted),
        "named_macs": {witness: _named(witness, found) for witness in WITNESSES},
        "cpu_s": round(time.process_time() - began_s, 2),
    }


def _named(witness: str, found: Cost) -> Row:
    """What our formula counts beyond the witness, by operator; empty for a witness that agrees or is silent."""
    macs, ours = found.counters[witness], found.counters["formula"]
    if macs is None or ours is None or near(macs, ours, TOLERANCE):
        return {}
    return {name: {"missing_macs": missing.macs, "how": missing.how} for name, missing in found.left_out.get(witness, {}).items()}


def difference(row: Row) -> float:
    """Of our two counters, relative to the larger."""
    one, other = row["counters"]["torch"], row["counters"]["formula"]
    return float(abs(one - other) / max(one, other, 1))


def share(row: Row, witness: str, *, with_named: bool = False) -> float | None:
    """A witness's MACs over our formula's; `with_named`: with what it left out by name."""
    macs = row["counters"][witness]
    if macs is None:
        return None
    named = sum(entry["missing_macs"] for entry in row["named_macs"][witness].values()) if with_named else 0
    return float((macs + named) / max(row["counters"]["formula"], 1))


def verdict(row: Row) -> str:
    """One of VERDICTS."""
    if row["status"] != "measured":
        return str(row["status"])
    if difference(row) > TOLERANCE or any(line.startswith("torch and formula: ") for line in row["uncounted"]):
        return "failed"
    found = "agree"
    for witness in WITNESSES:
        alone, whole = share(row, witness), share(row, witness, with_named=True)
        if alone is None or whole is None:
            found = "silent"
        elif not _near(alone):
            if not _near(whole):
                return "failed"
            found = "named" if found == "agree" else found
    return found


def _near(of_ours: float) -> bool:
    return abs(of_ours - 1) <= TOLERANCE * max(of_ours, 1)


def told(row: Row) -> str:
    """The words of a row: what the witnesses left out and how much of our count that is, what they could not do, or why there is no number."""
    if row["status"] != "measured":
        return str(row["reason"])
    said: dict[str, list[str]] = {}
    for witness in WITNESSES:
        parts = [
            f"{operator.removeprefix('aten::')} {percent(entry['missing_macs'] / max(row['counters']['formula'], 1))} %{entry['how']}"
            for operator, entry in row["named_macs"][witness].items()
            if entry["missing_macs"]
        ]
        if row["counters"][witness] is None:
            parts = [line.removeprefix(f"{witness}: ") for line in row["uncounted"] if line.startswith(f"{witness}: ")]
        whole = share(row, witness, with_named=True)
        if whole is not None and not _near(whole):
            parts.append(f"with these {percent(whole)} % of ours: not explained")
        if parts:
            said.setdefault(", ".join(parts), []).append(witness)
    both = [line for line in row["uncounted"] if line.startswith("torch and formula: ")]
    content = ["on one clip of noise, random weights"] if row["content"] else []
    return "; ".join([*([row["reason"]] if row["reason"] else []), *both, *(f"{', '.join(who)}: {what}" for what, who in said.items()), *content])


def table(rows: Sequence[Row], settings: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], earlier: Container[str] = ()) -> str:
    """The rows as Markdown, a summary on top; `cells` are those that are to be there, `earlier` names the rows that were counted by other code."""
    sizes, frames = (list(dict.fromkeys(str(cell[key]) for cell in cells)) for key in ("size", "frames"))
    systems = list(dict.fromkeys(cell["system"] for cell in cells))
    some = "" if set(systems) == set(registry.names()) else f" --systems {' '.join(systems)}"
    by_verdict = {name: [row for row in rows if verdict(row) == name] for name in VERDICTS}
    lines = [
        "# What four counters say of every system",
        "",
        f"Sizes {', '.join(sizes)}, {' and '.join(frames)} frames, {settings['resolution']} px, {settings['classes']} classes, style in21k, one "
        "view, every knob at its default. Torch's counter, our formula, and as "
        f"witnesses fvcore {settings['versions'].get('fvcore', '–')} and ptflops {settings['versions'].get('ptflops', '–')}, torch "
        f"{settings['versions']['torch']}. Again: `python -m tests.benchmarks.counters{some} --sizes {' '.join(sizes)} --frames {' '.join(frames)}`.",
        "",
        f"* cells: {len(cells)}, of which {len(rows)} are counted" + ("" if len(rows) == len(cells) else "; **the rest is to come**"),
        *(f"* {text}: {len(by_verdict[name])}{_which(by_verdict[name], name)}" for name, text in VERDICTS.items()),
        *([f"* **counted by an earlier code: {old}**"] if (old := sum(row["name"] in earlier for row in rows)) else []),
        f"* CPU time: {sum(row.get('cpu_s', 0) for row in rows) / 60:.1f} min; a cell at the median {_median_s(rows)} s",
        "",
        "Shares are of our formula's count. What a witness left out is what our formula counts for the operators that it names as unknown to it, or "
        "counts too low.",
        "",
        "| system | size | frames | MACs | parameters | torch against formula | fvcore | ptflops | left out, by operator | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row, ", earlier code" if row["name"] in earlier else "") for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _which(rows: Sequence[Row], name: str) -> str:
    if name in ("agree", "named") or not rows:
        return ""
    systems = {row["cell"]["system"]: [r for r in rows if r["cell"]["system"] == row["cell"]["system"]] for row in rows}
    return " (" + ", ".join(f"{system} in {len(found)}" for system, found in systems.items()) + ")"


def _median_s(rows: Sequence[Row]) -> str:
    seconds = {size: [row["cpu_s"] for row in rows if "cpu_s" in row and row["cell"]["size"] == size] for size in SIZES}
    return ", ".join(f"{statistics.median(found):.1f} ({size})" for size, found in seconds.items() if found) or "–"


def _line(row: Row, mark: str = "") -> str:
    cell, judged = row["cell"], verdict(row)
    start = [cell["system"], cell["size"], str(cell["frames"])]
    if row["status"] != "measured":
        return "| " + " | ".join([*start, *["–"] * 5, told(row), judged + mark]) + " |"
    shares = [("–" if (s := share(row, w)) is None else f"{quantity(row['counters'][w], 'macs')} ({percent(s)} %)") for w in WITNESSES]
    numbers = [quantity(row["macs"], "macs", 4), quantity(row["params"], "params"), f"{difference(row):.2g}", *shares]
    return "| " + " | ".join([*start, *numbers, told(row), (f"**{judged}**" if judged in WRONG else judged) + mark]) + " |"


def in_fresh_process(context: Any, system: str, size: str, frames: int, resolution: int, classes: int) -> Row:
    """`counted`, or a failed row that says how it ended."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, system, size, frames, resolution, classes))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        process.join()
        return {"status": "failed", "reason": f"its process ended with {process.exitcode} (-9: out of memory)"}
    process.join()
    return row


def _send(sender: Connection, system: str, size: str, frames: int, resolution: int, classes: int) -> None:
    try:
        row = counted(system, size, frames, resolution, classes)
    except Exception as error:  # one cell's failure is its row
        row = {"status": "failed", "reason": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    sender.send(row)


def _written(path: Path, settings: Mapping[str, Any]) -> list[Row]:
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found: list[Row] = record["rows"]
        under = record["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("--out is a new file or a record of this program", given=path, remedy="name another file, or remove it") from error
    if under != to_json(settings):
        odd = ", ".join(f"{key} {under.get(key)}" for key, value in to_json(settings).items() if under.get(key) != value)
        raise UsageError("the rows of --out must have been counted under the same settings", given=f"{path}: {odd}", remedy="name another file")
    return found


def place(cell: Mapping[str, Any]) -> tuple[int, int, int]:
    """Which cell it is, whichever code counted it; in the table's order."""
    systems = registry.names()
    return SIZES.index(cell["size"]), cell["frames"], systems.index(cell["system"]) if cell["system"] in systems else len(systems)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="What four counters say of every system.")
    parser.add_argument("--systems", nargs="+", default=["*"], help="names or patterns")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--frames", nargs="+", type=int, default=list(FRAMES))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--classes", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("counters.json"), help="cells that are there, counted by this code, are not counted again")
    parser.add_argument("--table", type=Path, default=Path("counters.md"))
    return parser.parse_args()


def run(given: argparse.Namespace) -> bool:
    """Counts the cells that are not there yet, or were counted by other code; whether all of those asked for are in order."""
    packages = machine.describe()["versions"]
    assert isinstance(packages, dict)
    versions = {name: packages[name] for name in ("torch", *WITNESSES) if name in packages}
    settings = {"resolution": given.resolution, "classes": given.classes, "style": "in21k", "versions": versions}
    # Small sizes first: what goes wrong goes wrong soon.
    asked = [(system, size, frames) for size in given.sizes for frames in given.frames for system in registry.select(given.systems)]
    cells = [{"system": s, "size": size, "frames": f, "code_version": version_with(s, COUNTING)} for s, size, f in asked]
    held = {place(row["cell"]): row for row in _written(given.out, settings)}
    there = {place(cell): cell for cell in (*(row["cell"] for row in held.values()), *cells)}

    def text() -> str:
        now = {cell["system"]: version_with(cell["system"], COUNTING) for cell in there.values() if cell["system"] in registry.names()}
        earlier = {row["name"] for row in held.values() if row["cell"]["code_version"] != now.get(row["cell"]["system"])}
        return table([held[at] for at in sorted(held)], settings, [there[at] for at in sorted(there)], earlier)

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitgs.registry", "vitgs.measure.cost", "ptflops"])
    for done, cell in enumerate(cells):
        name, row = name_of(cell, settings), held.get(place(cell))
        if row is None or row["name"] != name or row["status"] == "failed":
            found = in_fresh_process(context, cell["system"], cell["size"], cell["frames"], given.resolution, given.classes)
            held[place(cell)] = {"name": name, "cell": cell, **found}
            rows = [held[at] for at in sorted(held)]
            _write(given.out, json.dumps({"settings": settings, "rows": rows}, indent=1, allow_nan=False) + "\n")
            _write(given.table, text())
            print(f"{done + 1} of {len(cells)}", _line(held[place(cell)]), flush=True)
    _write(given.table, text())
    print(text().partition("\nShares")[0])
    return not any(verdict(held[place(cell)]) in WRONG for cell in cells)


def main() -> int:
    """The program; its exit code."""
    try:
        return 0 if run(arguments()) else 1
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
