"""Classes of images: the same ones under the same numbers in two sets, and as many images of each."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from brh_jax.data.sources import UNLABELLED, CorruptImage, Selection, Source
from brh_jax.errors import UserError

_NAMED = 5  # classes that a message names


class OfClasses(Selection):
    """Records of another source with their classes numbered as in `classes`, whatever their numbers were.

    Args:
        classes: names of classes, all that the records are of among them.
        indices: of the records; None for all of the source.
    """

    def __init__(self, source: Source, classes: Sequence[str], indices: ArrayLike | None = None):
        super().__init__(source, np.arange(len(source)) if indices is None else indices)
        number = {name: i for i, name in enumerate(classes)}
        if len(number) < len(source.classes):
            self.name = f"{source.name}, {len(number)} of {len(source.classes)} classes"
        self._numbers = [number.get(name, UNLABELLED) for name in source.classes]
        self.classes = tuple(classes)

    def read(self, index: int):
        record = super().read(index)
        return record | {"label": self._numbered(int(record["label"]))}

    def label(self, index: int) -> int:
        return self._numbered(super().label(index))

    def _numbered(self, label: int) -> int:
        return self._numbers[label] if label >= 0 else UNLABELLED


def matched(train: Source, evaluation: Source) -> Source:
    """`evaluation` with its classes numbered as those of `train`, which they are found among by their names.

    Raises:
        UserError: fewer than two classes, or some of `evaluation` that `train` does not have: the message names those that one
            has and the other has not.
    """
    for source in (train, evaluation):
        check_labels(source)
    if train.classes == evaluation.classes:
        return evaluation
    if unknown := sorted(set(evaluation.classes) - set(train.classes)):
        lacking = sorted(set(train.classes) - set(evaluation.classes))
        both = [f"no {_some(names)} in {source.name}" for names, source in ((unknown, train), (lacking, evaluation)) if names]
        raise UserError(
            f"{train.name} and {evaluation.name} have different classes: {'; '.join(both)}. Classes are compared by their names: "
            "name them alike, or give images whose classes are among those trained on"
        )
    return OfClasses(evaluation, train.classes)


def outputs_of(names: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Which output of a classifier each class is, by their names; None unless each is one, and no two are the same.

    Args:
        names: of the outputs, synonyms separated by commas: "n02123045, tabby, tabby cat" is known by any of these.
        classes: of images, likewise; capitals, underscores and hyphens make no difference.
    """
    whole: dict[str, set[int]] = {}
    parts: dict[str, set[int]] = {}
    for output, name in enumerate(names):
        whole.setdefault(_plain(name), set()).add(output)
        for part in name.split(","):
            parts.setdefault(_plain(part), set()).add(output)
    found = []
    for name in classes:
        known = [whole.get(_plain(name), set()), *(parts.get(_plain(part), set()) for part in (name, *name.split(",")))]
        if not (single := [outputs for outputs in known if len(outputs) == 1]):
            return None
        found += single[0]
    return found if len(set(found)) == len(found) else None


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_labels(source: Source) -> None:
    """Raises UserError unless the source has at least two classes."""
    if len(source.classes) < 2:
        raise UserError(
            f"{source.name} has {len(source.classes)} classes: labelled images are needed (sub-folders named after their class, "
            "or a labelled data set)"
        )


def draw_classes(source: Source, count: int, seed: int) -> tuple[str, ...]:
    """Names of `count` classes at random, in the source's order; all of them where it has no more, or for 0."""
    total = len(source.classes)
    if not 0 < count < total:
        return source.classes
    chosen = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    return tuple(source.classes[i] for i in chosen)


def balanced(source: Source, classes: Sequence[str], per_class: int, seed: int) -> Selection:
    """As many images of each of some classes, drawn at random: `per_class`, or all of a class that has fewer.

    Of 1,000 random images of ImageNet there is about one of each class: what compares images within a class needs fewer classes
        and
    more of each. Labels are read without decoding images, as far as needed.

    Args:
        classes: names of classes of the source; records keep the source's numbers for them.
        per_class: images of each; 0 for all.
    """
    wanted = {source.classes.index(name): per_class or len(source) for name in classes}
    rows: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(source)):
        if not wanted:
            break
        try:
            label = source.label(int(index))
        except CorruptImage:
            continue
        if label in wanted:
            rows.append(int(index))
            wanted[label] -= 1
            if not wanted[label]:
                del wanted[label]
    return Selection(source, rows)
