"""Figure of trainings: loss against step."""

from matplotlib.figure import Figure

from brh_jax.report.style import TEACHER, colour, log_scale, styled


@styled
def training_curves(runs: dict[str, list[dict]], columns: int = 2) -> Figure:
    """Loss against step: one panel per run, the mean in black and, where they were trained side by side, each block's own.

    Args:
        runs: title -> rows of a metrics file (`step`, `loss`, `loss_phase_1`, ..., `teacher_forcing`).
        columns: panels in a row.
    """
    columns = min(len(runs), columns)
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(4.6 * columns, 2.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (title, rows) in zip(axes, runs.items(), strict=False):
        steps = [r["step"] for r in rows]
        blocks = [k for k in (rows[0] if rows else {}) if k.startswith("loss_phase_")]
        blocks.sort(key=lambda k: int(k.removeprefix("loss_phase_")))
        for i, name in enumerate(blocks):
            axis.plot(steps, [r[name] for r in rows], color=colour(i), lw=1, label=f"block {i + 1}")
        axis.plot(steps, [r["loss"] for r in rows], color=TEACHER, lw=1.6, label="mean" if blocks else "loss")
        annealed = [r["step"] for r in rows if r.get("teacher_forcing", 0) > 0]
        if annealed:
            axis.axvspan(0, max(annealed), color="#eeeeee", lw=0, label="teacher\nforcing\nannealed")
        log_scale(axis)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylabel("loss")
        axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    for axis in axes[len(runs) :]:
        axis.set_visible(False)
    return figure
