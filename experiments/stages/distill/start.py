"""What a training begins with: shared blocks, or one of the controls that say whether depth is recurrent or compressible."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from brh_jax.distill import init_blocks
from brh_jax.distill.low_rank import LowRank, input_moments, unrolled
from brh_jax.errors import UserError, expect, expect_not_negative, expect_one_of, expect_positive
from brh_jax.models import Encoder, RaptorConfig
from brh_jax.models.cost import block_params, rank_of_size, unshared
from brh_jax.models.layers import MLP_KINDS
from brh_jax.partition import Partition
from brh_jax.train.parallel import to_host
from brh_jax.types import Trajectory

CONTROLS = ("", "narrow", "shallow", "dropped", "low_rank")


@dataclasses.dataclass(frozen=True)
class RaptorSettings:
    """The architecture of the blocks (paper, section 3).

    Attributes:
        mlp: feed-forward layer, swiglu, gelu, gelu_tanh or quick_gelu.
        mlp_ratio: its hidden width, of the width of a token.
        depth_scaling: whether branches and output are scaled by a function of depth.
        layer_scale_init: gain of the residual branches at the beginning.
        unshared: a control with the same number of parameters: narrow, every layer a block of its own, with a narrower
            feed-forward layer (k must be large enough for the attention); low_rank, every layer a block of its own, its matrices
            the teacher's own to a low rank at the beginning; shallow, k blocks applied once each, for the last state of each
            phase; dropped, the same from the teacher's last layer of each phase; empty for shared blocks.
        rank: relaxed sharing, in which each layer's matrices depart from its phase's by so low a rank, 0 for none; these
            departures begin as the teacher's own layers to that rank, what is shared as zero.
    """

    mlp: str = "swiglu"
    mlp_ratio: float = 4.0
    depth_scaling: bool = True
    layer_scale_init: float = 1e-5
    unshared: str = ""
    rank: int = 0

    def __post_init__(self):
        expect_one_of(self, "mlp", MLP_KINDS)
        expect_positive(self, "mlp_ratio")
        expect_not_negative(self, "layer_scale_init", "rank")
        expect_one_of(self, "unshared", CONTROLS)
        if self.rank and self.unshared:
            raise UserError(
                f"rank is {self.rank}, of layers that share a matrix, but unshared is {self.unshared!r}: set one alone"
            )

    @property
    def low_rank(self) -> bool:
        """Whether layers begin as the teacher's to a low rank."""
        return bool(self.rank) or self.unshared == "low_rank"

    def config(self, teacher: Encoder, partition: Partition) -> RaptorConfig:
        """The architecture of a Raptor of that teacher. Raises UserError where its feed-forward layer would have no width."""
        width = round(self.mlp_ratio * teacher.dim)
        expect(width > 0, "config.raptor.mlp_ratio", self.mlp_ratio, f"more, for tokens of width {teacher.dim}")
        config = RaptorConfig(
            teacher.config,
            partition,
            mlp=self.mlp,
            mlp_dim=width,
            depth_scaling=self.depth_scaling,
            layer_scale_init=self.layer_scale_init,
            once=self.unshared == "shallow",
        )
        return unshared(config) if self.unshared == "narrow" else config


class Start(NamedTuple):
    """Attributes:
    config: architecture of the blocks.
    params: what is trained, on the host.
    low_rank: what makes blocks of these; None where they are the blocks' own.
    """

    config: RaptorConfig
    params: Any
    low_rank: LowRank | None = None

    @property
    def partition(self) -> Partition:
        """The layers that share something."""
        relaxed = self.low_rank is not None and self.low_rank.partition
        return relaxed or self.config.partition


def start(
    settings: RaptorSettings,
    teacher: Encoder,
    partition: Partition,
    trajectories: Callable[[], Iterable[Trajectory]],
    seed: int,
) -> Start:
    """What the training of that partition's blocks begins with.

    Args:
        trajectories: the teacher's, of images to train on; asked for where layers begin as the teacher's to a low rank.
    """
    if settings.unshared == "dropped":
        return _dropped(teacher, partition)
    config = settings.config(teacher, partition)
    if not settings.low_rank:
        return Start(config, to_host(init_blocks(config, teacher.layout, jax.random.key(seed))))
    own, blocks = unrolled(teacher)
    if settings.rank:
        low_rank = LowRank(own, settings.rank, partition)
    else:
        low_rank = LowRank(own, rank_of_size(own, partition.k * block_params(config)))
    return Start(own, low_rank.start(to_host(blocks), input_moments(own, blocks, trajectories(), teacher.layout)), low_rank)


def _dropped(teacher: Encoder, partition: Partition) -> Start:
    """The teacher without all but the last layer of each phase."""
    own, blocks = unrolled(teacher)
    kept = {f"phase_{run.phase + 1}": blocks[f"phase_{run.stop}"] for run in partition.runs}
    return Start(dataclasses.replace(own, partition=partition, once=True), to_host(kept))
