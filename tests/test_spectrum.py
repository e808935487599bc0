"""The numbers of a Jacobian that are made of products with vectors, where the whole one is known."""

import pytest
import torch

from odenets.tuning.spectrum import Jacobian, spectrum


def linear(a):
    return lambda t, z: z @ a.T


@pytest.mark.parametrize("scale", [-1.0, 0.0, 2.0])
def test_products_where_every_vector_is_an_eigenvector(scale):
    y = torch.randn(2, 100, generator=torch.Generator().manual_seed(0))
    one = spectrum(Jacobian(lambda t, z: scale * z, 0.0, y))
    assert one == pytest.approx((abs(scale), scale, -scale), abs=1e-6)


def test_products_of_a_matrix_that_is_not_symmetric():
    a = torch.zeros(100, 100, dtype=torch.float64)
    a[0, 1], a[2, 2] = 6.0, -1.0
    one = spectrum(Jacobian(linear(a), 0.0, torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).double()))
    assert one == pytest.approx((6.0, 3.0, 3.0), rel=1e-6)


def test_products_are_those_of_the_jacobian():
    torch.manual_seed(0)
    u = torch.randn(4, 6, dtype=torch.float64)
    a = torch.randn(3, 3, dtype=torch.float64)
    f = lambda t, z: torch.tanh(z @ a.T) * z.flip(1)  # noqa: E731
    y = torch.randn(4, 2, 3, dtype=torch.float64)
    jacobian = Jacobian(f, 0.0, y)
    whole = torch.stack([torch.func.jacrev(lambda z: f(0.0, z[None])[0])(z).reshape(6, 6) for z in y])
    torch.testing.assert_close(jacobian.dense(), whole)
    torch.testing.assert_close(jacobian.times(u), (whole @ u[:, :, None])[..., 0])
    torch.testing.assert_close(jacobian.transposed(u), (whole.mT @ u[:, :, None])[..., 0])


def test_what_is_not_finite_is_not_a_number():
    for size in (3, 100):
        assert all(x != x for x in spectrum(Jacobian(lambda t, z: z / 0.0, 0.0, torch.ones(2, size))))


def test_a_field_that_mixes_its_samples_has_one_jacobian():
    """The mean over four samples, given to each: a projection."""
    one = spectrum(Jacobian(lambda t, z: z.mean(dim=0).expand_as(z), 0.0, torch.ones(4, 2)))
    assert one == pytest.approx((1.0, 1.0, 0.0), abs=1e-6)


def test_complex_states():
    one = spectrum(Jacobian(lambda t, z: 3j * z, 0.0, torch.ones(2, 1, dtype=torch.complex64)))
    assert one == pytest.approx((3.0, 0.0, 0.0), abs=1e-6)
