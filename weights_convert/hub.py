"""Weights from the Hugging Face hub, and what to do where it does not give them."""

import errno
import pathlib
import re

from brh_jax.errors import UserError
from brh_jax.files import SUMS
from weights_convert.tensors import first_line

BESIDE = ("*config.json", "*.safetensors.index.json", SUMS)
# Each only where those before it are not there. An ONNX graph may keep its tensors in files of their own.
WEIGHTS = ("*.safetensors", "pytorch_model.bin", "*.bin", "*.pth", "*.pt", "*.onnx")
ONNX_DATA = ("{}_data*", "{}.data")


def snapshot(spec: str) -> pathlib.Path:
    """A hub model's folder, or the one file that is asked for, from the hub's own cache where they are there.

    Args:
        spec: `organisation/model[/file][@revision]`.

    Raises:
        UserError: the hub or its cache does not give them; the message says what to do.
    """
    from huggingface_hub import snapshot_download

    where, _, revision = spec.partition("@")
    repo, file = "/".join(where.split("/")[:2]), "/".join(where.split("/")[2:])
    path = pathlib.Path()
    try:
        for weights in [file] if file else WEIGHTS:
            data = [pattern.format(weights) for pattern in ONNX_DATA] if weights.endswith(".onnx") else []
            path = pathlib.Path(snapshot_download(repo, revision=revision or None, allow_patterns=[*BESIDE, weights, *data]))
            if list(path.glob(weights)):
                return path / file
    except Exception as error:  # errors of the HTTP client have no common base that is public
        if not (why := _explanation(error, repo, revision)):
            raise
        raise UserError(f"could not get hf:{spec} from the hub: {why}") from None
    wanted = file or f"weights ({', '.join(WEIGHTS)})"
    if _offline():
        raise UserError(
            f"hf:{spec}: the hub's cache holds no {wanted} of it, and HF_HUB_OFFLINE is set: unset it to download them"
        )
    raise UserError(f"hf:{spec}: {repo} holds no {wanted}: see https://huggingface.co/{repo}/tree/main for what it holds")


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _explanation(error: BaseException, repo: str, revision: str) -> str:
    """What happened and what to do; empty for what is not the hub's."""
    from huggingface_hub import errors

    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)

    def one_of(*kinds):
        return next((e for e in chain if isinstance(e, kinds)), None)

    elsewhere = f"download {repo} elsewhere and give the folder; a copy in the hub's cache (HF_HOME) is used without a network"
    if one_of(errors.HFValidationError):
        return f"{repo!r} is no name of a model ({first_line(error)}): expected organisation/model"
    if _offline() or one_of(errors.OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE is set, and the hub's cache (HF_HOME) holds no whole copy of it. Unset it, or {elsewhere}"
    if one_of(errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: expected a branch, a tag or a commit of it"
    answer = one_of(errors.HfHubHTTPError)
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if one_of(errors.GatedRepoError) or status == 403:
        return f"{repo} is gated ({status}): accept its terms on https://huggingface.co/{repo}, then {_LOG_IN}"
    if one_of(errors.RepositoryNotFoundError) or status == 404:
        return (
            f"the hub knows no model {repo!r}, or shows it only to some: check the name; where it is private or gated, {_LOG_IN}"
        )
    if status == 401:
        return f"the hub does not take your token (401): {_LOG_IN} to a valid one, or unset it"
    if status == 429:
        wait = re.search(r"\d+", (answer.response.headers.get("Retry-After") or "") if answer else "")
        when = f"in {wait[0]} seconds" if wait else "in a few minutes"
        return f"too many requests from here (429). Try again {when}; {_LOG_IN}, which allows more; or {elsewhere}"
    if status is not None:
        return f"it answers {status} ({first_line(error)}). Try again later, or {elsewhere}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return f"{first_line(error)}. Make room in the hub's cache, or let HF_HOME name another folder"
    names = " ".join(type(e).__name__.lower() for e in chain)
    if isinstance(error, OSError) or "connect" in names or "timeout" in names or "proxy" in names:
        return f"{first_line(error)}. Check the network, or {elsewhere}"
    return ""
