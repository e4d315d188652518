"""One table per family: names in the source -> places in the Flax tree, and back."""

from weights_convert.families import clip, dinov2, dinov3, own, siglip, vit

# In the order in which they are asked whether tensors are theirs.
FAMILIES = {
    family.name: family
    for family in (clip.FAMILY, dinov3.FAMILY, dinov2.FAMILY, vit.DEIT3, vit.DINO, vit.MAE, vit.FAMILY, siglip.FAMILY, own.FAMILY)
}
