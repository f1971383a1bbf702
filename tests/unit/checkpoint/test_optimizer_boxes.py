"""A flat range of an array as boxes: they cover it once, in order, whatever the shape."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from octo_megatron.checkpoint.optimizer_state import boxes

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)


@given(shape=shapes, data=st.data())
def test_the_boxes_of_a_range_are_its_elements(shape: tuple[int, ...], data: st.DataObject) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    array = torch.arange(size).view(shape)
    found = []
    for box in boxes(start, stop, shape):
        part = array[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))]
        assert part.shape == box.shape
        flat = part.flatten()
        assert torch.equal(flat, torch.arange(box.start, box.start + len(flat)))  # contiguous in memory
        found += flat.tolist()
    assert found == list(range(start, stop))
    assert len(boxes(start, stop, shape)) <= max(1, 2 * len(shape) - 1)


def test_a_whole_parameter_is_one_box() -> None:
    assert [box.shape for box in boxes(0, 12, (3, 4))] == [(3, 4)]
    assert [box.shape for box in boxes(2, 11, (3, 4))] == [(1, 2), (1, 4), (1, 3)]
