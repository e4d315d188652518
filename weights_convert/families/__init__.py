"""One table per family: names in the source -> paths in the Flax tree."""

from weights_convert.families import dinov2, vit

FAMILIES = {family.name: family for family in (dinov2.FAMILY, vit.FAMILY)}
