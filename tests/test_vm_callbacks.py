"""Exceptions of callbacks, which come through a virtual machine as RuntimeErrors."""

import pytest

from hwpq_tvm.vm_callbacks import own_errors


def machine(callback, *args):
    """What a virtual machine makes of an exception in a callback."""
    try:
        return callback(*args)
    except BaseException:
        raise RuntimeError("somewhere inside") from None


@pytest.mark.parametrize("error", [KeyError("a"), KeyboardInterrupt()])
def test_a_callbacks_exception_arrives_as_it_is(error):
    def fails():
        raise error

    with pytest.raises(type(error)), own_errors() as noting:
        machine(noting(fails))


def test_what_no_callback_raised_stays():
    with pytest.raises(RuntimeError, match="the machine's own"), own_errors() as noting:
        assert machine(noting(lambda a, b: a + b), 2, 3) == 5
        raise RuntimeError("the machine's own")
