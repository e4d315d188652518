"""python -m experiments: the commands that there are."""

COMMANDS = {
    "experiments.main": "a run: stages, results, page",
    "experiments.explain": "every setting with its default and what it means",
    "experiments.sweep": "a study of many runs",
    "experiments.tables": "tables and figures of runs",
    "experiments.study": "the page of a small-scale study",
    "experiments.publish": "a Raptor of a run for the hub, with a model card of what was measured",
    "experiments.report": "the page of a finished run again, or of several side by side",
    "experiments.plan": "what a run will take, before any machine is rented",
    "experiments.runs": "the JSON schema of results.json",
    "experiments.dense_samples": "small sets with masks and depths, to see those probes run",
    "weights_convert": "pretrained weights into a folder, and back to the hub",
    "benchmarks": "ours beside a peer; in a clone",
    "brh_jax.info": "versions, devices and folders, for a report of a fault",
}


def main() -> None:
    """Prints them, a line each."""
    print("Each takes --help:\n" + "\n".join(f"  python -m {name:<26} {about}" for name, about in COMMANDS.items()))


if __name__ == "__main__":
    main()
