"""Training state on disk, through orbax: saved in the background, whole or not at all."""

import pathlib

import jax
import orbax.checkpoint as ocp

from brh_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one training run, in one folder; the last two are kept.

    Args:
        folder: made if it is not there.
        identity: what the state belongs to, as JSON (configuration, partition); a checkpoint with another is refused.
    """

    def __init__(self, folder, identity: dict):
        self.folder = pathlib.Path(folder).absolute()
        self.identity = identity
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=True),
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def save(self, step: int, state, data_state: dict) -> None:
        """Saves the state and the position of the input after `step` steps; returns before it is written."""
        about = {"identity": self.identity, "data": data_state}
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)))

    def restore(self, like):
        """The newest checkpoint, laid out as `like` is, or None: (step, state, position of the input).

        Raises:
            UserError: it belongs to another configuration, or does not fit.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        if about["identity"] != self.identity:
            raise UserError(
                f"the checkpoint in {self.folder} was made with {about['identity']}, this run has {self.identity}: "
                "use another --workdir, or remove that folder to start again"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"the checkpoint {self.folder / str(step)} is damaged or does not fit ({first}): remove it") from None
        return step, state, about["data"]

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
