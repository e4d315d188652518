"""Pretrained ViT weights into Flax parameters, exactly."""

from weights_convert.convert import Report, convert

__all__ = ["Report", "convert"]
