"""Errors of vectors are bounded: hidden values stay hidden, errors of others stay small."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tplimit.values.sampling_errors import (
    ORDINARY_SHARE,
    ORDINARY_SIGMAS,
    bounded,
    with_bounded_errors,
)
from tplimit.values.tensors import tensor

errors, sizes = st.floats(0, 1e6), st.floats(1e-6, 1e6)


@settings(deadline=None)
@given(stderr=errors, size=sizes)
def test_what_is_hidden_stays_hidden_and_nothing_else(stderr: float, size: float):
    error = float(bounded(np.float32(stderr), np.float32(size)))
    hides = lambda e: ORDINARY_SIGMAS * e > size
    assert hides(error) == hides(stderr)
    assert error <= min(stderr, size) * (1 + 1e-6)
    assert hides(error) or error <= ORDINARY_SHARE * size * (1 + 1e-6)


@pytest.mark.parametrize("axis", [None, 0])
def test_numbers_keep_their_errors(axis: int | None):
    value = tensor(np.array([1.0, 1.0, 0.01]), axis=axis, stderr=np.array([0.3, 0.01, 0.3]))
    kept = with_bounded_errors(value).stderr
    expected = [0.3, 0.01, 0.3] if axis is None else [0.1, 0.01, 0.01]
    np.testing.assert_allclose(kept, expected, rtol=1e-6)


def test_dead_units_have_none():
    assert bounded(np.float32(1), np.float32(0)) == 0
