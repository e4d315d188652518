"""What checks types and shapes while tests run."""

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as type checkers have it


def checked(function):
    """beartype, where it knows the types: flax gives its own modules fields whose types say nothing at run time."""
    try:
        return _CHECK(function)
    except BeartypeDecorHintException:
        return function
