"""mixture_average: every backend against the published formulation in float64."""

from __future__ import annotations

import pytest
import torch

import ginr_fast
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch
from ginr_fast.ops.mixture_average import mixture_average
from ginr_fast.ops.mixture_average.op import _average, _grad_bases, _grad_coefficients

BACKENDS = ["reference", "blocked", "native"]
SMALL = FieldSpec(coord_dim=2, out_dim=3, hidden_dim=5, hidden_layers=1)
# (L, W, M) of the paper's models with their coordinate and output dimensions, M cut for time.
PAPER = {
    "image-s": FieldSpec(2, 3, 64, 4, "sine"),
    "image-l": FieldSpec(2, 3, 128, 5, "sine"),
    "voxel-l": FieldSpec(3, 1, 128, 5, "sine"),
    "scene-s": FieldSpec(3, 4, 64, 4, "sine"),
}


def make(spec, batch, mixtures, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(batch, spec.layers, mixtures, generator=generator)
    bases = [torch.randn(mixtures, *slot.shape, generator=generator) for slot in spec.slots]
    return coefficients.to(device, dtype), [base.to(device, dtype) for base in bases]


def run(backend, coefficients, bases, spec, grad):
    """Output and all gradients."""
    coefficients = coefficients.clone().requires_grad_()
    bases = [base.clone().requires_grad_() for base in bases]
    with ginr_fast.backend(backend):
        out = mixture_average(coefficients, bases, spec)
        return [out.detach(), *torch.autograd.grad(out, [coefficients, *bases], grad)]


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def check_against_float64(backend, spec, batch, mixtures, dtype, limit, device="cpu"):
    coefficients, bases = make(spec, batch, mixtures, dtype, device)
    grad = torch.randn(batch, spec.parameter_count, generator=torch.Generator().manual_seed(1))
    grad = grad.to(device, dtype)
    want = run("reference", coefficients.double(), [b.double() for b in bases], spec, grad.double())
    got = run(backend, coefficients, bases, spec, grad)
    assert all(result.dtype == dtype for result in got)
    assert error(got[0], want[0]) <= limit
    for result, expected in zip(got[1:], want[1:], strict=True):
        assert result.shape == expected.shape
        assert error(result, expected) <= 5 * limit


@pytest.mark.parametrize("spec", PAPER.values(), ids=PAPER)
@pytest.mark.parametrize("backend", BACKENDS)
def test_paper_sizes_in_float32(backend, spec):
    check_against_float64(backend, spec, batch=3, mixtures=32, dtype=torch.float32, limit=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5, 8, 33])
@pytest.mark.parametrize("mixtures", [1, 3, 67])
@pytest.mark.parametrize("backend", ["blocked", "native"])
def test_odd_sizes(backend, mixtures, batch):
    spec = FieldSpec(coord_dim=3, out_dim=4, hidden_dim=19, hidden_layers=2)
    check_against_float64(backend, spec, batch, mixtures, torch.float32, limit=1e-6)
    check_against_float64(backend, spec, batch, mixtures, torch.float64, limit=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_to_blocked_on_cpu(dtype):
    check_against_float64("blocked", SMALL, 4, 16, dtype, limit=1.5e-2)
    coefficients, bases = make(SMALL, 2, 3, dtype)
    (plan,) = ginr_fast.explain(mixture_average, coefficients, bases, SMALL).plans
    assert plan.backend == "blocked"
    assert "float32 and float64" in plan.refused["native"]
    with ginr_fast.backend("native"), pytest.raises(dispatch.BackendError, match="float32"):
        mixture_average(coefficients, bases, SMALL)


def test_plan_counts_the_flops():
    coefficients, bases = make(SMALL, 2, 3)
    (plan,) = ginr_fast.explain(mixture_average, coefficients, bases, SMALL).plans
    assert (plan.operator, plan.backend) == ("mixture_average", "native")
    assert plan.flops == plan.naive_flops == 2 * 2 * 3 * SMALL.parameter_count
    assert not plan.refused


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_layout_is_the_specs(backend, bias):
    spec = FieldSpec(coord_dim=2, out_dim=3, hidden_dim=5, hidden_layers=1, bias=bias)
    coefficients, bases = make(spec, 4, 6)
    with ginr_fast.backend(backend):
        packed = mixture_average(coefficients, bases, spec)
    for layer, (weight, offset) in enumerate(spec.unpack(packed)):
        index = layer * (2 if bias else 1)
        alpha = coefficients[:, layer]
        torch.testing.assert_close(weight, torch.einsum("bm,moi->boi", alpha, bases[index]))
        if offset is not None:
            torch.testing.assert_close(offset, alpha @ bases[index + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_and_gradgradcheck(backend):
    spec = FieldSpec(coord_dim=1, out_dim=2, hidden_dim=3, hidden_layers=0)
    coefficients, bases = make(spec, 2, 3, torch.float64)
    inputs = [coefficients.requires_grad_(), *[base.requires_grad_() for base in bases]]

    def function(coefficients, *bases):
        return mixture_average(coefficients, bases, spec)

    with ginr_fast.backend(backend):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("backend", ["blocked", "native"])
def test_meta_learning_step(backend):
    """CAVIA: a gradient step on the latent, differentiated through (second order)."""
    generator = torch.Generator().manual_seed(3)
    projection = torch.randn(SMALL.layers * 6, 4, dtype=torch.float64, generator=generator)
    target = torch.randn(2, SMALL.parameter_count, dtype=torch.float64, generator=generator)

    def outer_gradients(name):
        _, bases = make(SMALL, 2, 6, torch.float64)
        bases = [base.requires_grad_() for base in bases]
        latent = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
        with ginr_fast.backend(name):
            for _ in range(2):
                alpha = (latent @ projection.t()).view(2, SMALL.layers, 6) + 1 / 6
                loss = (mixture_average(alpha, bases, SMALL).sin() - target).square().mean()
                (slope,) = torch.autograd.grad(loss, latent, create_graph=True)
                latent = latent - 0.1 * slope
            alpha = (latent @ projection.t()).view(2, SMALL.layers, 6) + 1 / 6
            loss = (mixture_average(alpha, bases, SMALL).sin() - target).square().mean()
            return torch.autograd.grad(loss, bases)

    for got, want in zip(outer_gradients(backend), outer_gradients("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["blocked", "native"])
def test_only_needed_gradients_are_computed(backend, monkeypatch):
    calls = []
    from ginr_fast.ops import native
    from ginr_fast.ops.mixture_average import blocked

    def spy(module, name, label):
        original = getattr(module, name)

        def counted(*args):
            calls.append((label, list(args[3]) if label == "bases" else None))
            return original(*args)

        monkeypatch.setattr(module, name, counted)

    spy(native, "mixture_average_grad_coefficients", "coefficients")
    spy(native, "mixture_average_grad_bases", "bases")
    spy(blocked, "grad_coefficients", "coefficients")
    spy(blocked, "grad_bases", "bases")
    coefficients, bases = make(SMALL, 2, 3)
    with ginr_fast.backend(backend):
        mixture_average(coefficients.clone().requires_grad_(), bases, SMALL).sum().backward()
        assert calls == [("coefficients", None)]
        calls.clear()
        bases[2].requires_grad_()
        mixture_average(coefficients, bases, SMALL).sum().backward()
        assert calls == [("bases", [2])]
    assert bases[0].grad is None and bases[2].grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_and_expanded_inputs(backend):
    coefficients, bases = make(SMALL, 4, 6, torch.float64)
    grad = torch.ones(()).double().expand(4, SMALL.parameter_count)
    want = run("reference", coefficients, bases, SMALL, grad)
    strange = coefficients.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert not strange.is_contiguous()
    swapped = [base.transpose(0, -1).contiguous().transpose(0, -1) for base in bases]
    assert not swapped[0].is_contiguous()
    got = run(backend, strange, swapped, SMALL, grad)
    for result, expected in zip(got, want, strict=True):
        torch.testing.assert_close(result, expected)
    one = coefficients[:1].expand(4, -1, -1)
    with ginr_fast.backend(backend):
        rows = mixture_average(one, bases, SMALL)
    torch.testing.assert_close(rows, want[0][:1].expand(4, -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    coefficients, bases = make(SMALL, 0, 3)
    grad = torch.zeros(0, SMALL.parameter_count)
    out, grad_coefficients, *grad_bases = run(backend, coefficients, bases, SMALL, grad)
    assert out.shape == (0, SMALL.parameter_count)
    assert grad_coefficients.shape == coefficients.shape
    assert all(not g.any() and g.shape == b.shape for g, b in zip(grad_bases, bases, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_mixture_and_parameter_lists(backend):
    coefficients, bases = make(SMALL, 3, 1)
    parameters = torch.nn.ParameterList(bases)
    with ginr_fast.backend(backend):
        out = mixture_average(torch.ones_like(coefficients), parameters, SMALL)
    expected = torch.cat([base.flatten() for base in bases])
    assert torch.equal(out, expected.expand(3, -1))


@pytest.mark.parametrize("backend", ["blocked", "native"])
def test_opcheck(backend):
    coefficients, bases = make(SMALL, 2, 3)
    coefficients.requires_grad_()
    flat = [base.flatten(1).requires_grad_() for base in bases]
    sizes = [base.shape[1] for base in flat]
    grad = torch.randn(2, SMALL.parameter_count, requires_grad=True)
    torch.library.opcheck(_average, (coefficients, flat, backend))
    torch.library.opcheck(_grad_coefficients, (grad, flat, SMALL.layers, backend))
    torch.library.opcheck(_grad_bases, (grad, coefficients, sizes, [0, 3, 5], backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_into_one_graph(backend):
    torch._dynamo.reset()

    def step(coefficients, bases):
        return mixture_average(2 * coefficients, bases, SMALL).sin()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    coefficients, bases = make(SMALL, 2, 3)
    coefficients.requires_grad_()
    with ginr_fast.backend(backend):
        got = compiled(coefficients, bases)
        (slope,) = torch.autograd.grad(got.sum(), coefficients)
        want = step(coefficients, bases)
        (expected,) = torch.autograd.grad(want.sum(), coefficients)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_keeps_the_precision_of_the_bases(backend):
    coefficients, bases = make(SMALL, 4, 6)
    low = coefficients.bfloat16()
    with ginr_fast.backend(backend):
        want = mixture_average(low.float(), bases, SMALL)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = mixture_average(low, bases, SMALL)
            same = mixture_average(low.float(), bases, SMALL)
        compiled = torch.compile(mixture_average, fullgraph=True, backend="aot_eager")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            traced = compiled(low, bases, SMALL)
    assert got.dtype == traced.dtype == torch.float32
    assert all(torch.equal(result, want) for result in (got, same, traced))


def test_meta_tensors_have_the_right_shape():
    coefficients, bases = make(SMALL, 2, 3, device="meta")
    out = mixture_average(coefficients, bases, SMALL)
    assert out.device.type == "meta" and out.shape == (2, SMALL.parameter_count)


GOOD = make(SMALL, 2, 3)


def with_base(index, value):
    return [*GOOD[1][:index], value, *GOOD[1][index + 1 :]]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((*GOOD, "spec"), TypeError, "spec: expected a FieldSpec, got str"),
        (([1.0], GOOD[1], SMALL), TypeError, "coefficients: expected a tensor, got list"),
        (
            (GOOD[0].long(), GOOD[1], SMALL),
            TypeError,
            "coefficients: expected dtype float32 or .* got int64",
        ),
        (
            (GOOD[0][:, :2], GOOD[1], SMALL),
            ValueError,
            r"coefficients: expected shape \(B, 3, M\), got \(2, 2, 3\)",
        ),
        ((GOOD[0][0], GOOD[1], SMALL), ValueError, r"coefficients: expected shape \(B, 3, M\)"),
        (
            (GOOD[0][..., :0], [base[:0] for base in GOOD[1]], SMALL),
            ValueError,
            "coefficients: expected at least one mixture component, got M = 0",
        ),
        ((GOOD[0], GOOD[1][0], SMALL), TypeError, "bases: expected a sequence of .* got Tensor"),
        (
            (GOOD[0].to_sparse(), GOOD[1], SMALL),
            TypeError,
            "coefficients: expected a dense tensor, got layout torch.sparse_coo",
        ),
        (
            (GOOD[0], with_base(0, GOOD[1][0].to_sparse()), SMALL),
            TypeError,
            r"bases\[0\]: expected a dense tensor",
        ),
        (
            (GOOD[0].to("meta").double(), [base.to("meta") for base in GOOD[1]], SMALL),
            TypeError,
            r"bases\[0\]: expected dtype float64, got float32",
        ),
        ((GOOD[0], None, SMALL), TypeError, "bases: expected a sequence of tensors, got NoneType"),
        ((GOOD[0], GOOD[1][:5], SMALL), ValueError, "bases: expected 6 tensors, got 5"),
        ((GOOD[0], with_base(1, 0.0), SMALL), TypeError, r"bases\[1\]: expected a tensor"),
        (
            (GOOD[0], with_base(2, GOOD[1][2][:2]), SMALL),
            ValueError,
            r"bases\[2\]: expected shape \(3, 5, 5\), got \(2, 5, 5\)",
        ),
        (
            (GOOD[0], with_base(0, GOOD[1][0].transpose(1, 2)), SMALL),
            ValueError,
            r"bases\[0\]: expected shape \(3, 5, 2\), got \(3, 2, 5\)",
        ),
        (
            (GOOD[0], with_base(3, GOOD[1][3].double()), SMALL),
            TypeError,
            r"bases\[3\]: expected dtype float32, got float64",
        ),
        (
            (GOOD[0], with_base(5, GOOD[1][5].to("meta")), SMALL),
            ValueError,
            r"bases\[5\]: expected device cpu, got meta",
        ),
    ],
)
def test_bad_input_is_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        mixture_average(*arguments)


def test_forcing_a_backend_it_lacks_is_an_error():
    with ginr_fast.backend("triton"), pytest.raises(dispatch.BackendError, match="no such backend"):
        mixture_average(*GOOD, SMALL)
