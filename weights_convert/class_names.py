"""What the outputs of a classifier are called, by the configuration beside the weights."""

import re

from brh_jax.data.files import printable
from weights_convert.sources import Source


def class_names(source: Source, outputs: int) -> tuple[str, ...]:
    """A name for each output, synonyms separated by commas; empty where the source does not say, or not of as many.

    transformers has `id2label`, timm `label_names` (wnids, say) and `label_descriptions` of these.
    """
    hf, timm = source.hf or {}, source.timm or {}
    labels, names, descriptions = hf.get("id2label"), timm.get("label_names"), timm.get("label_descriptions")
    if isinstance(labels, dict):
        names = [labels.get(str(output)) for output in range(len(labels))]  # which the file has in order of their digits
    if not isinstance(names, list) or len(names) != outputs or not all(isinstance(name, str) and name.strip() for name in names):
        return ()
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # transformers' own, where nobody named them
        return ()
    said = descriptions if isinstance(descriptions, dict) else {}
    return tuple(printable(f"{name}, {text}" if isinstance(text := said.get(name), str) and text else name) for name in names)
