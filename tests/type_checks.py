"""What checks types and shapes while tests run."""

from beartype import beartype
from beartype.roar import BeartypeDecorHintException


def checked(function):
    """beartype, where it knows the types: flax gives its own modules fields whose types say nothing at run time."""
    try:
        return beartype(function)
    except BeartypeDecorHintException:
        return function
