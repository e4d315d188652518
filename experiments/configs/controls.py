"""Is it the max cut, and is it the sharing? Raptors of max-cut and random partitions beside unshared blocks, on one teacher.

    python -m experiments.sweep --config=configs/controls.py --workdir=runs/controls --jobs=2
    python -m experiments.sweep --config=configs/controls.py:dinov2,arch=vits14,runlocal --workdir=runs/controls_s \\
        --config.teacher.source=weights.onnx --config.data.train=folder:photos/train --config.data.eval=folder:photos/test
    python -m experiments.tables runs/controls

Arguments, separated by commas; those that are not named here go to the base configuration:
    quickstart     the base, a file of experiments/configs: digits and a ViT trained here once, by the run "teacher" (default)
    ks=2+3+4       numbers of phases (default 1 to 6; one phase has nothing to draw, and is not in the random partitions' runs)
    seeds=3        how many of each; a new draw of partitions for each

The unshared networks have the Raptor's number of parameters (config.raptor.unshared): shallow, k blocks applied once each, at k /
L of its operations and trained for the last state of each phase alone, so that its e is to be compared there; narrow, a block for
every layer with a narrower feed-forward layer, for those k whose parameters suffice for the attention of every layer (of weights
that are read, only where arch=NAME tells how deep they are; left out otherwise); low-rank, a block for every layer, its matrices
the teacher's own to a low rank to begin with. Dropped has the teacher's last layer of each phase to begin with, and is shallow
otherwise. Relaxed shares a matrix in each phase, from which every layer departs by a rank of 4, 16 or 64 (config.raptor.rank).
What begins as the teacher's is run with recipe=joint alone.

Hardware: quickstart 30 runs of 1 to 6 Raptors and the teacher's.
Expect, by the paper, max-cut partitions above random ones for k = 2, 3, 4, often by more than one standard deviation.
"""

import importlib
import pathlib

from ml_collections import ConfigDict

from brh_jax.models.registry import architecture
from experiments.configs import number, numbers, split_argument

_KINDS: dict[str, dict] = {
    "max-cut": {"phases.method": "max_cut"},
    "random-contiguous": {"phases.method": "random_contiguous"},
    "random-fragmented": {"phases.method": "random_fragmented"},
    "unshared-shallow": {"phases.method": "max_cut", "raptor.unshared": "shallow"},
    "unshared-narrow": {"phases.method": "max_cut", "raptor.unshared": "narrow"},
}
# What begins as the teacher's own layers is for recipe=joint, at learning rates of its own (docs/experiments.md).
_FROM_TEACHER: dict[str, dict] = {
    "unshared-low-rank": {"raptor.unshared": "low_rank", "distill.stage2.learning_rate": 0.005},
    "teacher-dropped": {"raptor.unshared": "dropped", "distill.stage2.learning_rate": 0.005},
    **{f"relaxed-{rank}": {"raptor.rank": rank, "distill.stage2.learning_rate": 0.01} for rank in (4, 16, 64)},
}


def get_config(arg: str = "") -> ConfigDict:
    """The base configuration, down to what the comparison needs."""
    base, rest, ks, _ = _options(arg)
    config = importlib.import_module(f"experiments.configs.{base}").get_config(rest).unlock()
    config.stages = ("teacher", "phases", "distill")
    config.phases.update({"k": ks, "bootstrap": 0})
    config.eval.baselines = ()
    return config.lock()


def sweep(arg: str = "", config: ConfigDict | None = None) -> dict[str, dict]:
    """The runs: a method and a seed each, all numbers of phases."""
    _, _, ks, seeds = _options(arg)
    config = config or get_config(arg)
    runs, teacher = {}, {}
    kinds = _KINDS
    if not get_config(arg).distill.stage1.steps:  # recipe=joint
        kinds = kinds | {name: {"phases.method": "max_cut"} | kind for name, kind in _FROM_TEACHER.items()}
    if config.teacher.source == "train":
        runs["teacher"] = {"stages": ("teacher",)}
        teacher = {"teacher.source": "{workdir}/teacher/teacher/model"}
    for seed in range(seeds):
        for name, kind in kinds.items():
            fitting = tuple(k for k in ks if _fits(name, k, config))
            if fitting:
                runs[f"{name}-seed{seed}"] = teacher | kind | {"phases.k": fitting, "phases.seed": seed, "seed": seed}
    return runs


def _fits(name: str, k: int, config: ConfigDict) -> bool:
    """Whether there is something to compare: one phase cannot be drawn, and narrow layers need the parameters of many blocks."""
    if name == "unshared-narrow":
        arch = config.teacher.arch
        vit = config.teacher.vit if config.teacher.source == "train" else architecture(arch).config if arch else None
        return vit is not None and 3 * k >= vit.depth
    return k > 1 or not name.startswith("random")


def _options(arg: str) -> tuple[str, str, tuple[int, ...], int]:
    """Base configuration, its own argument, numbers of phases, number of seeds."""
    bases = {path.stem for path in pathlib.Path(__file__).parent.glob("*.py")} - {"__init__", "default", "controls"}
    found, items = split_argument(arg, ks="1+2+3+4+5+6", seeds="3")
    base = items.pop(0) if items and items[0] in bases else "quickstart"
    return base, ",".join(items), numbers("ks", found["ks"], "phases"), number("seeds", found["seeds"], "seeds")
