"""Probes on the teacher and on every Raptor: linear classification, segmentation and depth, k-NN and logistic regression."""

import pathlib

from experiments.context import Context
from experiments.probing import classification, dense


def run(context: Context, folder: pathlib.Path) -> dict:
    """Returns the scores of each probe by model; those whose section names no training set are left out.

    Of linear classification they stand by themselves, of the others under their section's name.
    """
    found = classification.linear(context, folder)
    others = {
        "segmentation": dense.segmentation(context, folder / "segmentation"),
        "depth": dense.depth(context, folder / "depth"),
        "quick": classification.quick(context),
    }
    skipped = found.pop("skipped", {})
    for name, one in others.items():
        if one:
            skipped = skipped | one.pop("skipped")
            found[name] = one
    if not found:
        print("probes: config.probe, .segmentation, .depth and .quick name no training set, nothing to do", flush=True)
        return {}
    return found | {"skipped": skipped}
