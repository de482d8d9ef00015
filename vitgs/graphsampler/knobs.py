"""The knobs of the method: what each takes, its default, what it is for."""

from __future__ import annotations

from vitgs.backbone.readout import READOUTS
from vitgs.graphsampler.between import PLACES
from vitgs.graphsampler.cells import CELLS
from vitgs.graphsampler.glance import GLANCES
from vitgs.graphsampler.merge import MERGES
from vitgs.graphsampler.relaxation import RELAXATIONS, TEMPERATURES
from vitgs.graphsampler.select import DECISIONS, NOISES, SELECTORS
from vitgs.reduction.merging import SCHEDULES
from vitgs.spec import Knob

SPACE = {
    "budget": Knob(
        values=(1.0, 0.5, 0.25, 0.125, 0.0625), default=0.25, when="run", low=1e-6, high=1.0, help="kept fraction of (frame, token) pairs, B"
    ),
    "k": Knob(values=(2, 4, 6, 8, 16), default=6, low=1, high=4096, help="most similar nodes that a node listens to"),
    "layers": Knob(values=(0, 1, 2, 4), default=1, low=0, high=64, help="rounds of message passing, L; 0 for no graph"),
    "memory": Knob(values=(0, 1, 2, 4, 8), default=2, low=0, high=1024, help="slots of the memory bank; 0 for none"),
    "cell": Knob(values=tuple(CELLS), default="gru", help="what turns the slots from frame to frame: a gated cell, or a plain recurrent one"),
    "bank": Knob(values=(0, 4, 8, 16, 32), default=0, low=0, high=4096, help="best nodes of all earlier frames that a node attends to; 0 for none"),
    "window": Knob(
        values=(0, 2, 4, 8), default=8, low=0, high=4096, help="chunks to either side in which neighbours are sought; 0 for the whole clip"
    ),
    "message": Knob(values=("attention", "mean"), default="attention", help="how messages are weighted"),
    "select": Knob(values=SELECTORS, default="both", help="which axis the utility may thin"),
    "decision": Knob(values=DECISIONS, default="free", help="the best pairs of the clip, or M frames x K tokens"),
    "attention": Knob(values=("frame", "joint"), default="frame", help="how kept tokens attend in the ViT: a frame at a time, or all together"),
    "utility": Knob(values=("learned", "none"), default="learned", help="log utility as bias in attention and pooling"),
    "readout": Knob(values=READOUTS, default="class", help="how nodes become one vector"),
    "noise": Knob(values=NOISES, default="constant", help="Gumbel noise on the choice in training: of scale 1, annealed to 0, or none"),
    "sparsity": Knob(values=(0.0, 0.1, 0.3, 1.0), default=0.3, low=0.0, high=100.0, help="price of utility: weight of the expected kept fraction"),
    "consistency": Knob(
        values=(0.0, 0.1, 1.0), default=0.0, low=0.0, high=100.0, help="weight of the consistency regulariser; doubles the training cost"
    ),
    "glance": Knob(
        values=GLANCES, default="half", help="what the utility scores: patches, the same at half the resolution, or behind the first block"
    ),
    "frozen": Knob(values=(False, True), default=False, help="whether the image ViT stays as it is"),
    "layer_decay": Knob(values=(1.0, 0.9, 0.75, 0.65), default=1.0, low=0.1, high=1.0, help="learning rate of a ViT block relative to the next"),
    "added_lr": Knob(
        values=(1.0, 3.0, 6.0, 10.0),
        default=10.0,
        low=0.1,
        high=100.0,
        help="learning rate of all that the ViT doesn't have, relative to the ViT's",
    ),
    "relaxation": Knob(
        values=RELAXATIONS, default="bias", help="how the choice has a gradient: by the bias alone, or a relaxation besides it in training"
    ),
    "temperature": Knob(values=TEMPERATURES, default="annealed", help="of a relaxation: annealed to a hard choice, or 1"),
    "diversity": Knob(
        values=(0.0, 0.25, 0.5, 0.75), default=0.0, low=0.0, high=1.0, help="share of coverage, beside utility, in what the kept tokens maximise"
    ),
    "merge": Knob(values=MERGES, default="none", help="what merges kept tokens between the blocks of the ViT"),
    "r": Knob(values=(0, 2, 4, 8, 16), default=4, low=0, high=100_000, help="tokens merged in each block; with attention=frame, in each frame"),
    "schedule": Knob(values=SCHEDULES, default="constant", help="how r is spread over the blocks"),
    "place": Knob(values=PLACES, default="behind", help="graph layers behind the ViT, or between its blocks"),
}
