"""Distillation: a Raptor for every partition."""

import dataclasses
from collections.abc import Iterable, Iterator

from brh_jax import distill
from brh_jax.data.sources import Source
from brh_jax.distill import Blockwise, BlockwiseSettings, Joint, JointSettings, Validation
from brh_jax.distill.objectives import Objective
from brh_jax.distill.states import StatesBatches, open_states
from brh_jax.distill.trainer import check_classes
from brh_jax.errors import UserError, expect, expect_not_negative, expect_one_of, expect_positive
from brh_jax.models import Encoder
from brh_jax.models.cost import partition_bits
from brh_jax.models.encoder import count_params
from brh_jax.models.remat import NAMES
from brh_jax.train.loop import Run
from brh_jax.train.parallel import to_host
from brh_jax.types import Trajectory
from experiments.data import EvalImages, ImageSet, TrainingImages
from experiments.settings import Common, flat, without_effect
from experiments.stage import Context
from experiments.stages.accuracy.run import classifier
from experiments.stages.distill.start import RaptorSettings, Start, start
from experiments.stages.phases.run import read_partitions
from experiments.stages.teacher.run import CostResult, cost_of, read_teacher

_MOMENT_IMAGES = 256  # on which layers are brought to a low rank


@dataclasses.dataclass(frozen=True)
class ValidationSettings:
    """How Raptors are measured as they train, on images of `config.data.eval`; nothing is where none are given.

    Attributes:
        times: how often in each training, evenly spread over its steps; 0 for never.
        num_images: images that it is done on, always the same.
    """

    times: int = without_effect(10)
    num_images: int = without_effect(256)

    def __post_init__(self):
        expect_not_negative(self, "times")
        expect_positive(self, "num_images")


@dataclasses.dataclass(frozen=True)
class DistillSettings:
    """How Raptors are trained (paper, section 4).

    Attributes:
        batch_size: images of a step.
        remat: what the backward pass keeps of a block: none (everything), dots (products), full (nothing), auto (dots,
            but full where a CPU multiplies in bfloat16: the fastest that was measured).
        pieces: parts that a batch goes through in, gradients accumulated.
        stage1: each block on its own phase, from the teacher's states; 0 steps leave it out.
        stage2: the blocks joined, rolled out from the first state; 0 steps leave it out.
    """

    batch_size: int = 64
    remat: str = without_effect("auto")
    pieces: int = 1
    stage1: BlockwiseSettings = BlockwiseSettings()
    stage2: JointSettings = JointSettings()
    validation: ValidationSettings = ValidationSettings()

    def __post_init__(self):
        expect_positive(self, "batch_size", "pieces")
        expect_one_of(self, "remat", NAMES)
        expect(self.batch_size % self.pieces == 0, "pieces", self.pieces, f"a divisor of the batch, {self.batch_size}")
        steps = self.stage1.steps + self.stage2.steps
        expect(steps > 0, "stage1.steps", self.stage1.steps, "a positive number, where stage2.steps is 0 as well")


@dataclasses.dataclass(frozen=True)
class DistillImages(TrainingImages, EvalImages):
    """What Raptors are trained on. Nothing that comes out depends on what they are measured on as they train.

    Attributes:
        states_gb: keep the teacher's states of the training images on disk, up to so many GB; 0 runs the teacher inside the step.
            For small sets without augmentation only: the paper's would take 13 TB.
    """

    states_gb: float = 0.0
    eval: str = without_effect("")
    eval_augment: str = without_effect("center_crop")

    def __post_init__(self):
        super().__post_init__()
        expect(self.states_gb >= 0, "states_gb", self.states_gb, "a size in GB, or 0")
        if self.states_gb and self.augment != "center_crop":
            raise UserError(
                f"states_gb is {self.states_gb}: it keeps one state for each image, but config.data.augment is {self.augment}; "
                "set config.data.augment=center_crop, or config.data.states_gb=0"
            )


@dataclasses.dataclass(frozen=True)
class Settings(Common):
    """Sections that the stage uses."""

    data: DistillImages = DistillImages()
    raptor: RaptorSettings = RaptorSettings()
    distill: DistillSettings = DistillSettings()

    def __post_init__(self):
        super().__post_init__()
        steps = self.distill.stage1.steps
        if self.raptor.low_rank and steps:
            raise UserError(
                f"config.distill.stage1.steps is {steps}, but layers of low rank are trained as a whole alone: set it to 0"
            )


@dataclasses.dataclass(frozen=True)
class RaptorResult:
    """A Raptor.

    Attributes:
        k: its number of phases.
        phases: they, as people write them.
        cost: its size and operations.
        trainings: folders of its trainings in the stage's, by what people call them.
    """

    k: int
    phases: str
    cost: CostResult
    trainings: dict[str, str]


@dataclasses.dataclass(frozen=True)
class DistillResult:
    """The Raptors, by name."""

    raptors: dict[str, RaptorResult]


def read_raptors(context: Context, compute_dtype: str = "float32") -> dict[str, Encoder]:
    """Every Raptor of the run, by name; none in a run that neither distils nor has.

    Raises:
        UserError: the run distils, and has not yet.
    """
    if "distill" in context.stages:
        context.result(DistillResult, "distill")
    result = context.results.get(DistillResult)
    folder = context.workdir / "distill"
    return {
        name: context.encoder(folder / name / "raptor", "distill", compute_dtype) for name in (result.raptors if result else ())
    }


def read_blockwise(context: Context, name: str, compute_dtype: str = "float32") -> Encoder | None:
    """A Raptor as it was before its blocks were joined; None where they never were."""
    trainings = context.result(DistillResult, "distill").raptors[name].trainings.values()
    if not {f"{name}/stage1", f"{name}/stage2"} <= set(trainings):
        return None
    return context.encoder(context.workdir / "distill" / name / "stage1" / "raptor", "distill", compute_dtype)


def read_models(context: Context, compute_dtype: str = "float32") -> dict[str, Encoder]:
    """The teacher and every Raptor, by name; the first is the teacher."""
    return {"teacher": read_teacher(context, compute_dtype), **read_raptors(context, compute_dtype)}


def reads(settings: Settings) -> list[ImageSet]:
    """What is distilled on, and what Raptors are measured on as they train."""
    measured = settings.data.eval and settings.distill.validation.times
    return settings.data.named("train", *(["eval"] if measured else []))


def run(context: Context, settings: Settings) -> DistillResult:
    """Leaves every Raptor in `kN/raptor/`, and what it was before its blocks were joined in `kN/stage1/raptor/`."""
    teacher = read_teacher(context, settings.compute_dtype)
    try:  # before anything is trained
        check_classes(Joint(settings.distill.stage2), teacher)
    except UserError as error:
        raise UserError(f"config.distill.stage2.{error}") from None
    source = context.source(settings.data.train, settings.data.data_dir)
    validation, raptors = _validation(context, settings, teacher, source), {}
    for k, partition in read_partitions(context).items():
        begun = start(
            settings.raptor, teacher, partition, lambda: _trajectories(context, settings, source, teacher), settings.seed
        )
        raptor, trainings = _train(context, settings, source, teacher, begun, f"k{k}", validation)
        raptors[f"k{k}"] = RaptorResult(k, str(partition), _cost(raptor, begun), trainings)
    return DistillResult(raptors)


def _cost(raptor: Encoder, begun: Start) -> CostResult:
    """Of blocks that are made of fewer parameters, these are counted."""
    found = cost_of(raptor)
    if begun.low_rank is None:
        return found
    own = count_params(begun.params)
    fewer, extra = found.block_params - own, partition_bits(begun.partition)
    block_bits = found.block_bits - 32 * fewer
    return dataclasses.replace(
        found,
        params=found.params - fewer,
        block_params=own,
        parameter_bits=found.parameter_bits - 32 * fewer,
        block_bits=block_bits,
        partition_bits=extra,
        levin=block_bits + extra + found.log2_flops,
    )


def _trajectories(context: Context, settings: Settings, source: Source, teacher: Encoder) -> Iterator[Trajectory]:
    """The teacher's on some of the images to train on, whole in every process."""
    transform = settings.data.transform("center_crop", teacher.preprocessing)
    batches = context.measuring_batches(
        source, transform, num_images=_MOMENT_IMAGES, batch_size=settings.distill.batch_size, label="what layers read"
    )
    for batch in batches:
        yield to_host(teacher.trajectory(teacher.normalize_pixels(batch["image"])))[:, batch["valid"]]


def _train(
    context: Context,
    settings: Settings,
    source: Source,
    teacher: Encoder,
    begun: Start,
    name: str,
    validation: Validation | None,
) -> tuple[Encoder, dict[str, str]]:
    """The trained Raptor, and the folders of its trainings by what people call them."""
    own, folder, blocks, partition = settings.distill, context.folder / name, begun.params, begun.partition
    every: dict[int, Objective] = {1: Blockwise(own.stage1), 2: Joint(own.stage2)}
    objectives = {number: objective for number, objective in every.items() if objective.settings.steps}
    # Where there is one training alone, people need not know its number.
    called = {number: f" stage {number}" if len(objectives) > 1 else "" for number in objectives}
    for number, objective in objectives.items():
        stage = f"stage{number}"
        # The second sees other crops in another order than the first.
        seed = 2 * settings.seed + number
        identity = flat(settings.raptor) | flat(getattr(own, stage))
        identity |= {"partition": str(partition), "layout": str(teacher.layout)}
        label = f"distill k={partition.k}{called[number]}"
        blocks = distill.train_blocks(
            objective,
            teacher,
            begun.config,
            blocks,
            _batches(context, settings, source, teacher, seed),
            Run(folder / stage, identity, context.mesh, label, context.loop),
            batch_size=own.batch_size,
            seed=seed,
            remat=own.remat,
            pieces=own.pieces,
            validation=validation,
            low_rank=begun.low_rank,
        )
        raptor = distill.raptor_encoder(begun.config, blocks, teacher, f"Raptor {partition} of {teacher.name}")
        where = folder / ("raptor" if number == max(objectives) else f"{stage}/raptor")
        context.save(raptor, where, {"partition": str(partition), "stage": number})
    return raptor, {f"k = {partition.k}{called[number]}": f"{name}/stage{number}" for number in objectives}


def _validation(context: Context, settings: Settings, teacher: Encoder, train: Source) -> Validation | None:
    """What measures Raptors as they train; None where they are not to be, or on nothing."""
    data, own = settings.data, settings.distill.validation
    if not (data.eval and own.times):
        return None
    source = context.source(data.eval, data.data_dir, effect=False)

    def batches() -> Iterable[dict]:
        return context.measuring_batches(
            source,
            data.transform(data.eval_augment, teacher.preprocessing),
            num_images=own.num_images,
            batch_size=settings.distill.batch_size,
            label="images to validate on",
            seed=settings.seed,
            threads=data.threads,
        )

    return Validation(teacher, batches, times=own.times, **classifier(teacher, train, source)._asdict())


def _batches(context: Context, settings: Settings, source: Source, teacher: Encoder, seed: int):
    """Images for the teacher inside the step, or its states where they are kept on disk."""
    data, size = settings.data, settings.distill.batch_size
    if not data.states_gb:
        return data.training_batches(source, teacher.preprocessing, size, seed)
    folder, limit = context.workdir / "states", data.states_gb
    try:
        store = open_states(teacher, source, folder, limit_gb=limit, batch_size=size, mesh=context.mesh)
    except UserError as error:
        raise UserError(f"config.data.states_gb: {error}") from None
    return StatesBatches(store, size, seed=seed)
