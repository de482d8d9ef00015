"""`explain`: one clip as the method saw it, as a picture or as data: what it kept, who listened to whom, what the memory took up, the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitgs import folders
from vitgs.cli import show as output
from vitgs.cli.checkpoint import about_checkpoint, data_for, sampler
from vitgs.errors import NothingToWorkOn, UsageError
from vitgs.record import Clip

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from vitgs.graphsampler.explain import Explanation

EMBEDDED = "digits:"
SPLIT = "test"


def explain(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file that `train graphsampler` wrote, with its .json beside it.")],
    clip: Annotated[str, typer.Argument(metavar="CLIP", help="digits:<task>[:number], a clip of the test split, or a video file.")],
    budget: Annotated[float | None, typer.Option("--budget", help="Kept fraction of (frame, token) pairs; the model's own if left out.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A .png, .svg or .pdf file; explain.png in this folder if left out.")
    ] = None,
    nodes: Annotated[int, typer.Option("--nodes", metavar="N", help="Draw the edges of so many nodes: the best by utility, one a frame first.")] = 3,
    node: Annotated[list[str] | None, typer.Option("--node", metavar="T,Y,X", help="Draw the edges of this kept token; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all as one JSON document; a picture is drawn only with --out.")] = False,
) -> None:
    """Draw what graphsampler did on one clip."""
    if nodes < 0:
        raise UsageError("--nodes must be 0 or more", given=nodes, remedy="give --nodes a number such as 3")
    wanted = [_node(text) for text in node or ()]
    file = _picture_file(out)
    from vitgs.graphsampler.explain import explain as run

    about = about_checkpoint(checkpoint)
    shape = Clip(**about["clip"])
    model = sampler(checkpoint, about, "explain needs graphsampler, whose choice, graph and memory it draws", budget)
    title, clip_TCHW, frame_THWC, truth = _embedded(clip, shape) if clip.startswith(EMBEDDED) else _video(clip, shape)
    found = run(model, clip_TCHW, budget)
    chosen = [_kept(found, place) for place in wanted] or found.best_nodes(nodes)
    names = shape.class_names or tuple(str(c) for c in range(shape.class_count))
    if not as_json or out is not None:
        from vitgs.report.explained import Shown, draw

        file.parent.mkdir(parents=True, exist_ok=True)
        draw(found, Shown(title=title, frame_THWC=frame_THWC, class_names=names, truth=truth), chosen, file)
    if as_json:
        about_clip = {"checkpoint": checkpoint.name, "clip": clip, "truth": None if truth is None else names[truth]}
        output.document({**about_clip, **_data(found, names), "chosen_nodes": chosen, "picture": None if out is None else folders.portable(file)})
        return
    share = found.logits_C.softmax(dim=0)
    best = int(share.argmax())
    known = "" if truth is None else ", correct" if best == truth else f", wrong: it is {names[truth]}"
    print(f"answer: {names[best]} ({100 * float(share[best]):.1f} %){known}; kept {len(found.position_S3)} of {found.grid[0] * model.tokens} tokens")
    print(f"picture: {folders.portable(file)}")


def _picture_file(out: Path | None) -> Path:
    file = out or Path("explain.png")
    if file.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError("--out ends in .png, .svg or .pdf", given=file.name, remedy="give, say, --out explain.png")
    return file


def _node(text: str) -> tuple[int, int, int]:
    """`3,0,1` -> frame 3, row 0, column 1."""
    try:
        t, y, x = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError("--node takes frame,row,column", given=repr(text), remedy="write, say, --node 3,0,1") from error
    return t, y, x


def _kept(found: Explanation, place: tuple[int, int, int]) -> int:
    """The node at that place."""
    kept = [tuple(position) for position in found.position_S3.tolist()]
    if place in kept:
        return kept.index(place)
    here = [",".join(map(str, position)) for position in kept if position[0] == place[0]]
    remedy = f"kept in that frame: {' '.join(here)}" if here else f"frames with kept tokens: {' '.join(map(str, sorted({t for t, _, _ in kept})))}"
    raise UsageError("--node must be a token that was kept", given=",".join(map(str, place)), remedy=remedy)


def _embedded(spec: str, shape: Clip) -> tuple[str, Tensor, NDArray[np.floating[Any]], int]:
    """Title, clip, pixels and true label of a made clip; pixels are dark on white."""
    from vitgs.data.digits import EVALUATION_CLIPS, pixels

    name, _, number = spec.removeprefix(EMBEDDED).partition(":")
    if number and not (number.isdecimal() and int(number) < EVALUATION_CLIPS):
        raise UsageError(f"a test clip has a number from 0 to {EVALUATION_CLIPS - 1}", given=repr(number), remedy=f"write, say, {EMBEDDED}{name}:0")
    index = int(number or 0)
    source = data_for(shape, EMBEDDED + name, SPLIT, "give a clip of the task that it was trained on")
    *_, last = source.evaluation(index + 1)
    frame_THWC = 1 - pixels(last.clip_BTCHW[-1]).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return f"{source.name}, {SPLIT} clip {index}", last.clip_BTCHW[-1], frame_THWC, int(last.label_B[-1])


def _video(name: str, shape: Clip) -> tuple[str, Tensor, NDArray[np.floating[Any]], int | None]:
    """The same of a video file, its frames and crop as `eval` takes them; the label is known when the file lies in a folder named as a class."""
    from vitgs.data import transforms
    from vitgs.data.folder import evaluation_frames
    from vitgs.data.video import Undecodable

    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError("a clip is digits:<task>[:number] or a video file", given=name, remedy="check the path")
    try:
        decoded = evaluation_frames(path, shape)
    except Undecodable as error:
        raise NothingToWorkOn("a video must be one that can be decoded", given=f"{path.name}: {error}", remedy="give another file") from error
    bytes_THWC = transforms.centre_crop(decoded.frame_THWC, shape.height, shape.width)
    names = shape.class_names or ()
    label = path.resolve().parent.name
    return path.name, transforms.normalised([bytes_THWC], "imagenet")[0], bytes_THWC / 255, names.index(label) if label in names else None


def _data(found: Explanation, names: tuple[str, ...]) -> dict[str, Any]:
    """All of the explanation as JSON takes it."""
    from vitgs.graphsampler.explain import KINDS

    probability = found.logits_C.softmax(dim=0).tolist()
    edges = None
    if found.graph is not None:
        graph = found.graph
        edges = [
            {
                "node": node,
                "listens_to": int(graph.neighbour_SE[node, place]),
                "kind": KINDS[int(graph.kind_SE[node, place])],
                "similarity": float(graph.similarity_SE[node, place]),
                "weight_by_round": graph.weight_LSE[:, node, place].tolist(),
            }
            for node, place in (graph.kind_SE != KINDS.index("none")).nonzero().tolist()
        ]
    memory = None
    if found.memory is not None:
        memory = {
            "write_gate_by_frame_and_slot": found.memory.gate_TM.tolist() if found.memory.gated else None,
            "state_change_by_frame_and_slot": found.memory.change_TM.tolist(),
            "share_by_node_and_slot": found.memory.share_SM.tolist(),
        }
    return {
        "answer": names[int(found.logits_C.argmax())],
        "probability": dict(zip(names, probability, strict=True)),
        "budget": found.budget,
        "grid": dict(zip(("frames", "rows", "columns"), found.grid, strict=True)),
        "kept": found.position_S3.tolist(),
        "utility_by_frame_and_token": None if found.utility_TN is None else found.utility_TN.tolist(),
        "score_by_frame": found.score_T.tolist(),
        "edges": edges,
        "memory": memory,
    }
