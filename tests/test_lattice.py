"""Places spread over an image."""

from __future__ import annotations

import pytest
import torch

from ginr_fast.encoders.lattice import lattice_embedding, lattice_places


def test_places_of_a_square_number_are_a_lattice() -> None:
    axis = torch.tensor([-2 / 3, 0.0, 2 / 3])
    torch.testing.assert_close(lattice_places(9), torch.cartesian_prod(axis, axis))
    seven = lattice_places(7)  # along the rows of the same lattice, none twice
    assert len({tuple(place) for place in seven.tolist()}) == 7 and seven.abs().max() < 0.67


@pytest.mark.parametrize("count", [0, -3])
def test_no_places_are_refused(count: int) -> None:
    message = f"count: expected a positive integer, got {count}"
    with pytest.raises(ValueError, match=message):
        lattice_places(count)
    with pytest.raises(ValueError, match=message):
        lattice_embedding(count, 8, 4.0)
