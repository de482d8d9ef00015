"""Two checks of the theory on a model and some clips, utility and submodularity: one number a clip for all that is asked, no verdicts yet.

Lists are by clip, in the order given; NaN where a number isn't defined for a clip. `theory_gaps` has the third check.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitgs.errors import UsageError
from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.theory import (
    attention_received,
    cross_entropy,
    expected_kept,
    leave_frame_out,
    leave_one_out,
    log_probability,
    look,
    rank_correlation,
    wanted,
)
from vitgs.graphsampler.theory_sets import diminishes, gain, greedy, mean_ratio, of_size, random_chain, ratio, share_beaten, subsets, table
from vitgs.spec import LABEL_SMOOTHING

ByClip = dict[str, list[float]]

RANDOM_SCORES = 20
CANDIDATES, CHOSEN = 10, 4
CHAINS = 50
TOLERANCE = 1e-4  # nats, some hundred times the rounding of single precision
LEAST_GAIN = 1e-2  # nats: where the best choice gains less, a ratio to it says nothing


def correlations(model: GraphSampler, clip_BTCHW: Tensor, label_B: Tensor, budget: float, generator: torch.Generator, *, bias: bool) -> ByClip:
    """Leave-one-out over the kept pairs: rank correlation of the rise in cross-entropy with utility and with scores that know nothing of it.

    `attention`: received in the ViT's last block, of the model on the kept pairs; `attention on all pairs`: of the model on all. `bias` False: the
    same choice, but attention and pooling don't get to know the utility, so that a pair can't matter just because it was weighted.
    """
    found: ByClip = defaultdict(list)
    scene, every = look(model, clip_BTCHW, budget), look(model, clip_BTCHW, 1.0)
    if not bias:
        scene, every = scene.without_bias(), every.without_bias()
    scores = {
        "utility": scene.utility_BTN.flatten(1).gather(1, scene.index_BS),
        "attention": attention_received(model, scene.own()),
    }
    if scene.index_BS.shape[1] < model.frames * model.tokens:
        scores["attention on all pairs"] = attention_received(model, every.own()).gather(1, scene.index_BS)
    for row, label in enumerate(label_B.tolist()):
        rise_S = leave_one_out(cross_entropy(model, scene, row, label), tuple(scene.index_BS[row].tolist()))
        for name, score_BS in scores.items():
            found[name].append(rank_correlation(score_BS[row], rise_S))
        found["random"].append(_at_random(rise_S, generator))
        found["largest rise"].append(float(rise_S.max()))
        found["median size of a rise"].append(float(rise_S.abs().median()))
    return dict(found)


def frame_correlations(model: GraphSampler, clip_BTCHW: Tensor, label_B: Tensor, budget: float, generator: torch.Generator) -> ByClip:
    """The same for frames: all kept pairs of a frame are left out. A frame's utility is the sum or the largest of its kept pairs' probabilities."""
    found: ByClip = defaultdict(list)
    scene = look(model, clip_BTCHW, budget)
    received_BS = attention_received(model, scene.own())
    for row, label in enumerate(label_B.tolist()):
        kept_S = scene.index_BS[row]
        frames, rise_F = leave_frame_out(cross_entropy(model, scene, row, label), tuple(kept_S.tolist()), model.tokens)
        utility_S = scene.utility_BTN[row].flatten()[kept_S].sigmoid()
        of_frame = [kept_S // model.tokens == frame for frame in frames]
        scores = {
            "utility, sum": [float(utility_S[own].sum()) for own in of_frame],
            "utility, largest": [float(utility_S[own].max()) for own in of_frame],
            "attention, sum": [float(received_BS[row][own].sum()) for own in of_frame],
            "count of kept tokens": [float(own.sum()) for own in of_frame],
        }
        for name, score in scores.items():
            found[name].append(rank_correlation(torch.tensor(score), rise_F))
        found["random"].append(_at_random(rise_F, generator))
    return dict(found)


def _at_random(rise: Tensor, generator: torch.Generator) -> float:
    """The mean correlation of several random scores, so that the control adds little noise of its own."""
    return sum(rank_correlation(torch.rand(len(rise), generator=generator), rise) for _ in range(RANDOM_SCORES)) / RANDOM_SCORES


def priced(model: GraphSampler, clip_BTCHW: Tensor, label_B: Tensor, budget: float) -> ByClip:
    """What the price of utility did: the expected kept fraction, the share of pairs above one half, and whether the answer is right."""
    scene = look(model, clip_BTCHW, budget)
    with torch.no_grad():
        right_B = model(clip_BTCHW, budget).argmax(dim=1) == label_B
    return {
        "expected kept fraction": expected_kept(scene.utility_BTN).tolist(),
        "share above one half": wanted(scene.utility_BTN).tolist(),
        "top-1": right_B.float().tolist(),
    }


def submodularity(
    model: GraphSampler, clip_BTCHW: Tensor, label_B: Tensor, budget: float, rng: random.Random, *, context: bool
) -> Mapping[str, ByClip]:
    """All subsets of up to `CHOSEN` of the `CANDIDATES` best pairs by utility, by what f says of them; f is the log probability of the true class,
    or minus the cross-entropy with the label smoothing of the training.

    `context` False: the model sees the subset alone, f(empty) is the prior, which is uniform. True: the other pairs that the budget keeps are always
    there, as in use, and f(empty) is f of those alone; nothing is found where the budget keeps no others. Chains don't begin with the empty set
    when that is the prior, which no model gave.
    """
    pairs = model.frames * model.tokens
    if pairs < CANDIDATES:
        raise UsageError(f"submodularity is checked on {CANDIDATES} pairs", given=f"clips of {pairs}", remedy="train on longer or larger clips")
    scene = look(model, clip_BTCHW, budget)
    if context and scene.index_BS.shape[1] <= CANDIDATES:
        return {}
    chosen = subsets(CANDIDATES, CHOSEN)
    found: dict[str, ByClip] = {name: defaultdict(list) for name in ("log probability", "smoothed")}
    for row, label in enumerate(label_B.tolist()):
        ranked = scene.utility_BTN[row].flatten().argsort(descending=True, stable=True).tolist()
        others = tuple(ranked[CANDIDATES : scene.index_BS.shape[1]]) if context else ()
        sets = [(*(ranked[i] for i in subset), *others) for subset in chosen if subset or others]
        log_RC = log_probability(model, scene, row)(sets)
        if not others:
            log_RC = torch.cat([torch.full_like(log_RC[:1], -math.log(log_RC.shape[1])), log_RC])
        true_R = log_RC[:, label]
        values = {"log probability": true_R, "smoothed": (1 - LABEL_SMOOTHING) * true_R + LABEL_SMOOTHING * log_RC.mean(dim=1)}
        state = rng.getstate()
        for name, value_R in values.items():
            rng.setstate(state)  # the same chains for both
            for what, number in _instance(chosen, value_R.tolist(), rng, least=0 if others else 1).items():
                found[name][what].append(number)
    return {name: dict(by_clip) for name, by_clip in found.items()}


def _instance(chosen: Sequence[tuple[int, ...]], values: Sequence[float], rng: random.Random, *, least: int) -> dict[str, float]:
    f = table(chosen, values)
    chains = [random_chain(CANDIDATES, CHOSEN, rng, least=least) for _ in range(CHAINS)]
    falls = [diminishes(f, chain, TOLERANCE) for chain in chains]
    rises = [gain(f, chain.large, chain.extra) >= -TOLERANCE for chain in chains]
    best, top, taken = max(of_size(f, CHOSEN).values()), tuple(range(CHOSEN)), greedy(f, CANDIDATES, CHOSEN)
    return {
        "first chain diminishes": float(falls[0]),
        "chains that diminish": sum(falls) / CHAINS,
        "first gain is not negative": float(rises[0]),
        "gains that are not negative": sum(rises) / CHAINS,
        "greedy, ratio": ratio(f, taken, least=LEAST_GAIN),
        "best by utility, ratio": ratio(f, top, least=LEAST_GAIN),
        "at random, mean ratio": mean_ratio(f, CHOSEN, least=LEAST_GAIN),
        "greedy, loss in nats": best - f[taken],
        "best by utility, loss in nats": best - f[top],
        "best by utility, share of choices it beats": share_beaten(f, top),
    }
