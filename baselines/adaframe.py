"""AdaFrame: a recurrent policy that has glanced at the clip cheaply decides which frame to look at next in full, and when it has seen enough.

Source: "AdaFrame: adaptive frame selection for fast video recognition" (Wu 2019, arXiv 1811.12432, section 3); no code is published. A global
memory holds cheap features of up to 16 frames at half resolution, with sine positions. Each step attends to it with the last hidden state, and an
LSTM reads the full features of one frame beside what was attended (section 3.1). From its state come the prediction, the place of the next frame in
[0, 1] (a sigmoid, the mean of a Gaussian with a spread of 0.1 in training) and the utility: the reward that further frames are expected to bring.

Losses: cross-entropy of the last step's prediction; a reward for each step whose margin, the true class's probability less the largest other, beats
all earlier ones, by how much it does; REINFORCE for the places, with the utility as baseline; half the squared error of the utility against the
rewards that followed, discounted by 0.9. All weights are 1. REINFORCE's surrogate is worth nothing as a number, so the loss that is told counts minus
the discounted reward of the rollout in its place.
At test time (section 3.2) a clip is done when its utility was more than `margin` below its largest so far for more than `patience` times, or after
`frames` frames, so that the cost depends on the clip; finished clips leave the batch, and frames that nobody looks at are never computed.

What we set, since the text leaves it open or its value is not known to us: the first frame is the middle one; a step's return begins with the next
step's reward; `frames`, `margin` and `patience` have defaults of ours. Deviations: an image ViT instead of ResNet-101, trained with all else in one
go instead of beforehand; the cheap features are those of four small convolutions, trained from nothing, instead of a trained MobileNetV2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tubelets import sine_table
from vitgs.backbone.vit import Vit
from vitgs.errors import UsageError
from vitgs.reduction.selection import spread_frames
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Batch, Clip, Knob, Losses, Size, System, cross_entropy

SPREAD, DISCOUNT = 0.1, 0.9
CHANNELS = (16, 32, 64, 128)

State = tuple[Tensor, Tensor]


class Glance(nn.Module):
    """Cheap features of frames, `(B, M, C, H, W)` -> `(B, M, E)`: strided convolutions, all but the first depth-wise separable, then the mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, CHANNELS[0], 3, stride=2, padding=1), nn.GELU()]
        for before, after in pairwise(CHANNELS):
            layers += [nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before), nn.Conv2d(before, after, 1), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(CHANNELS[-1])

    def forward(self, frames_BMCHW: Tensor) -> Tensor:
        maps: Tensor = self.layers(frames_BMCHW.flatten(0, 1))
        features: Tensor = self.norm(maps.flatten(2).mean(dim=2))
        return torch.unflatten(features, 0, (-1, frames_BMCHW.shape[1]))


class AdaFrame(nn.Module):
    """Up to `frames` steps. `head`, `place` and `gain` are the paper's prediction, selection and utility networks."""

    sines_ME: Tensor

    def __init__(
        self, size: Size, clip: Clip, style: Style, *, frames: int, margin: float, patience: int, memory: int, hidden: int, readout: str, utility: str
    ) -> None:
        super().__init__()
        self.frames, self.margin, self.patience, self.memory = frames, margin, patience, min(memory, clip.frames)
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.glance = Glance(clip.channels)
        self.register_buffer("sines_ME", sine_table(self.memory, CHANNELS[-1]), persistent=False)
        state = hidden or size.width
        self.query = nn.Linear(state, CHANNELS[-1], bias=False)
        self.lstm = nn.LSTMCell(size.width + CHANNELS[-1], state)
        self.place, self.gain = nn.Linear(state, 1), nn.Linear(state, 1)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(state, clip.class_count)

    def remember(self, clip_BTCHW: Tensor) -> Tensor:
        """The global memory `(B, M, E)`: what was glanced at, with where it lies in the clip."""
        with stage("memory"):
            seen = clip_BTCHW[:, spread_frames(clip_BTCHW.shape[1], self.memory, clip_BTCHW.device)]
            small = F.avg_pool2d(seen.flatten(0, 1), 2, ceil_mode=True)
            memory_BME: Tensor = self.glance(torch.unflatten(small, 0, (-1, self.memory))) + self.sines_ME
            return memory_BME

    def look(self, frame_BCHW: Tensor, memory_BME: Tensor, state: State | None) -> State:
        """One step: the state after looking at one frame of each clip in full."""
        tokens = self.vit.patches(frame_BCHW.unsqueeze(1))
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, 1)
        tokens = self.vit(tokens)
        with stage("memory"):
            asked_BE = torch.zeros_like(memory_BME[:, 0]) if state is None else self.query(state[0])
            weight_BM = (memory_BME @ asked_BE.unsqueeze(-1)).squeeze(-1).softmax(dim=1)
            context_BE = torch.einsum("bm,bme->be", weight_BM, memory_BME)
        with stage("select"):
            after: State = self.lstm(torch.cat([self.readout(tokens), context_BE], dim=-1), state)
            return after

    def next_place(self, hidden_BD: Tensor) -> Tensor:
        """Where in [0, 1] the next frame is wanted, `(B,)`."""
        return torch.sigmoid(self.place(hidden_BD)).squeeze(-1)

    def steps(self, frames: int, total: int) -> int:
        """How many frames are looked at, at most."""
        if frames < 1:
            raise UsageError("frames must be at least 1", given=frames, remedy="set frames to a number such as 5")
        return min(frames, total)

    def forward(self, clip_BTCHW: Tensor, frames: int | None = None, margin: float | None = None, patience: int | None = None) -> Tensor:
        margin, patience = self.margin if margin is None else margin, self.patience if patience is None else patience
        batch, total = clip_BTCHW.shape[:2]
        steps = self.steps(self.frames if frames is None else frames, total)
        memory_BME = self.remember(clip_BTCHW)
        with stage("select"):
            # A is the clips that are still looked at.
            row_A = torch.arange(batch, device=clip_BTCHW.device)
            frame_A, below_A = torch.full_like(row_A, total // 2), torch.zeros_like(row_A)
            best_A = memory_BME.new_full((batch,), -torch.inf)
            logits_BC = memory_BME.new_zeros(batch, self.head.out_features)
        state: State | None = None
        for step in range(steps):
            with stage("select"):
                frame_ACHW = clip_BTCHW[row_A, frame_A]
            state = self.look(frame_ACHW, memory_BME[row_A], state)
            with stage("head"):
                logits_BC = logits_BC.index_copy(0, row_A, self.head(state[0]).to(logits_BC.dtype))
            if step == steps - 1:
                break
            with stage("select"):
                frame_A = at(self.next_place(state[0]), total)
                gain_A = self.gain(state[0]).squeeze(-1)
                best_A = torch.maximum(best_A, gain_A)
                below_A = below_A + (best_A - gain_A > margin)
                # The first step is never below itself, so nothing can be done before this, and the device isn't asked.
                if step > patience and (below_A > patience).any():
                    on_A = (below_A <= patience).nonzero().squeeze(-1)
                    if not len(on_A):
                        break
                    row_A, frame_A, below_A, best_A = row_A[on_A], frame_A[on_A], below_A[on_A], best_A[on_A]
                    state = (state[0][on_A], state[1][on_A])
        return logits_BC


def at(place_B: Tensor, frames: int) -> Tensor:
    """The frame at a place in [0, 1]."""
    return (place_B * frames).long().clamp(0, frames - 1)


def margins(logits_BC: Tensor, label_B: Tensor) -> Tensor:
    """The true class's probability less the largest other, `(B,)`."""
    probability_BC = logits_BC.softmax(dim=-1)
    true_B = probability_BC.gather(1, label_B.unsqueeze(1)).squeeze(1)
    return true_B - probability_BC.scatter(1, label_B.unsqueeze(1), -torch.inf).amax(dim=1)


def returns(margin_KB: Tensor) -> Tensor:
    """What each step but the last is followed by, `(K - 1, B)`: rewards for beating all margins before, discounted."""
    best_KB = margin_KB.cummax(dim=0).values
    reward_KB = best_KB[1:] - best_KB[:-1]
    out, after_B = [], torch.zeros_like(margin_KB[0])
    for reward_B in reward_KB.flip(0):
        after_B = reward_B + DISCOUNT * after_B
        out.append(after_B)
    return torch.stack(out[::-1]) if out else reward_KB


def objective(model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> Losses:
    """A rollout of all steps with places drawn around the policy's; cross-entropy, REINFORCE and the utility's error."""
    del progress
    assert isinstance(model, AdaFrame)
    clip_BTCHW, total = batch.clip_BTCHW, batch.clip_BTCHW.shape[1]
    steps = model.steps(batch.run.get("frames", model.frames), total)
    noise_KB = SPREAD * torch.randn(steps, clip_BTCHW.shape[0], generator=generator).to(clip_BTCHW)
    memory_BME, row_B = model.remember(clip_BTCHW), torch.arange(clip_BTCHW.shape[0], device=clip_BTCHW.device)
    state: State | None = None
    frame_B = torch.full_like(row_B, total // 2)
    logits, gain, log_density = [], [], []
    for step in range(steps):
        state = model.look(clip_BTCHW[row_B, frame_B], memory_BME, state)
        logits.append(model.head(state[0]))
        place_B = model.next_place(state[0])
        drawn_B = (place_B + noise_KB[step]).detach()
        gain.append(model.gain(state[0]).squeeze(-1))
        log_density.append(-(drawn_B - place_B).square() / (2 * SPREAD**2))
        frame_B = at(drawn_B, total)
    loss = cross_entropy(logits[-1], batch.label_B)
    wanted = returns(torch.stack([margins(each.detach(), batch.label_B) for each in logits]))
    gain_KB, log_density_KB = torch.stack(gain)[:-1], torch.stack(log_density)[:-1]
    error = 0.5 * (gain_KB - wanted).square().sum(dim=0).mean()
    policy = -((wanted - gain_KB.detach()) * log_density_KB).sum(dim=0).mean()
    reward = wanted[:1].sum(dim=0).mean()
    parts = {"cross_entropy": loss.detach(), "utility": error.detach(), "policy": policy.detach(), "reward": reward}
    return Losses(total=loss + error + valued(policy, -reward), parts=parts, logits_BC=logits[-1])


def valued(surrogate: Tensor, value: Tensor) -> Tensor:
    """The gradient of `surrogate` with another value."""
    return surrogate + (value - surrogate).detach()


SYSTEM = System(
    name="adaframe",
    group="frame selection",
    paper="AdaFrame, arXiv 1811.12432",
    construct=AdaFrame,
    space={
        "frames": Knob(values=(1, 2, 3, 5, 10), default=5, when="run", low=1, high=4096, help="frames looked at in full, at most"),
        "margin": Knob(values=(0.0, 0.1, 0.3), default=0.1, when="run", low=0.0, high=1000.0, help="how far below its largest utility may fall"),
        "patience": Knob(values=(0, 1, 2), default=1, when="run", low=0, high=4096, help="how often utility may fall below before a clip is done"),
        "memory": Knob(values=(4, 16), default=16, low=1, high=4096, help="frames that are glanced at, at most"),
        "hidden": Knob(values=(0,), default=0, low=0, high=4096, help="width of the LSTM; 0 for the ViT's"),
        "readout": Knob(values=READOUTS, default="class", help="how a frame's tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias, in each frame alone"),
    },
    objective=objective,
    paper_rule={"frames": 5},
    content=True,
    note="no code is published; trained end to end, the cheap features from nothing",
)
