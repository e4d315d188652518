"""The page's figures and tables, one file per topic: `sections(context, results, folder)` yields them."""

from brh_jax.phases import Partition


def partitions_in(results) -> dict[str, Partition]:
    """The partitions that a run found, by the name of the Raptor that has them."""
    found = results["phases"].get("partitions", {})
    return {f"k{k}": Partition(tuple(p["lengths"]), tuple(p["phases"])) for k, p in found.items()}
