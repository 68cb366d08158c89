"""The Triton kernels of field_mlp, in Triton's interpreter, against the float64 formula."""

from __future__ import annotations

import importlib.util
from functools import partial

import pytest
import torch
from field_cases import (
    ENCODING,
    KINDS,
    check_accuracy,
    has_phases,
    make_coords,
    make_spec,
    make_weights,
    relative_error,
)
from triton_cases import CHAIN_TILES, RESIDENT_TILES, small_tiles

import ginr_fast
from ginr_fast import field_mlp
from ginr_fast.ops import triton_backend
from ginr_fast.ops.field_mlp import reference

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="runs the interpreter"),
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]
MODES = {"layers": {}, "resident": RESIDENT_TILES, "chain": CHAIN_TILES}
RELU = {"hidden_dim": 128, "hidden_layers": 2, "activation": "relu"}
SINE = {"hidden_dim": 128, "hidden_layers": 2, "activation": "sine", "out_activation": "sine"}


@pytest.fixture(autouse=True)
def _small_tiles():
    with small_tiles():
        yield


@pytest.fixture(params=MODES)
def mode(request):
    """How a field runs: a kernel a layer, the same with resident weights, or all in one."""
    with small_tiles(**MODES[request.param]):
        yield request.param


def check(kind="points", *, batch=2, count=37, dtype=torch.float32, **changes):
    spec = make_spec(**changes)
    coords = make_coords(kind, batch, count, spec.coord_dim)
    weights = make_weights(spec, batch, dtype)
    limit = 2e-5 if dtype == torch.float32 else 1.5e-2
    function = partial(field_mlp, spec=spec)
    inputs = [coords, weights]
    if not isinstance(coords, torch.Tensor):
        function, inputs = partial(field_mlp, coords, spec=spec), [weights]
    phases = has_phases(spec) and dtype == torch.float32
    check_accuracy(function, inputs, "triton", limit, as_float32=phases)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_coordinates(kind):
    check(kind, batch=3, **RELU, encoding=ENCODING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("encoding", [None, ENCODING], ids=["coordinates", "encoded"])
@pytest.mark.parametrize("sizes", [RELU, SINE], ids=["relu", "sine"])
def test_paths(mode, sizes, encoding, dtype):
    check(dtype=dtype, encoding=encoding, **sizes)


@pytest.mark.parametrize(
    ("changes", "batch", "count"),
    [
        ({"hidden_dim": 512, "hidden_layers": 1}, 1, 17),
        ({"hidden_dim": 320, "hidden_layers": 1, "activation": "sine"}, 2, 20),
        ({"hidden_dim": 200, "hidden_layers": 1, "encoding": ENCODING}, 3, 33),
        ({"hidden_dim": 256, "hidden_layers": 0, "activation": "sine", "w0": 7.0}, 1, 16),
        ({"hidden_dim": 130, "hidden_layers": 0, "encoding": ENCODING, "bias": False}, 2, 1),
        ({"hidden_dim": 16, "hidden_layers": 3, "activation": "none", "out_dim": 1}, 3, 5),
    ],
    ids=str,
)
def test_widths_and_depths(mode, changes, batch, count):
    check(batch=batch, count=count, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "relu", "out_activation": "relu", "out_dim": 9},
        {"activation": "relu", "out_activation": "sine", "w0": 2.0, "out_dim": 16},
        {"activation": "sine", "out_activation": "relu", "bias": False},
        {"activation": "none", "out_activation": "sine", "w0": 3.0, "encoding": ENCODING},
        {"activation": "none", "bias": False},
    ],
    ids=str,
)
def test_activations_and_channels(mode, changes):
    check(hidden_dim=128, hidden_layers=1, **changes)


@pytest.mark.parametrize("dims", [1, 3, 6])
@pytest.mark.parametrize("encoding", [None, ENCODING], ids=["coordinates", "encoded"])
def test_coordinates_of_other_dimensions(dims, encoding):
    check(coord_dim=dims, encoding=encoding, hidden_dim=64)


def test_more_points_and_instances_than_a_span_holds(mode):
    from ginr_fast.ops.field_mlp import kernels

    spec = make_spec(hidden_dim=128)
    for kind, batch, count in (("points", 1, 70), ("one set", 17, 3)):
        coords = make_coords(kind, batch, count, 2)
        call = kernels.Call(coords, make_weights(spec, batch), spec)
        assert len(list(call.spans("forward", 128))) > 1 < len(list(call.spans("backward", 512)))
        check(kind, batch=batch, count=count, hidden_dim=128)


@pytest.mark.parametrize("sizes", [SINE, {**RELU, "out_activation": "sine", "w0": 2.0}])
def test_bfloat16_weights_of_sines_are_computed_in_float16(mode, sizes):
    from ginr_fast.ops.field_mlp import kernels

    assert kernels.compute_dtype(make_spec(**sizes), torch.bfloat16) == torch.float16
    assert kernels.compute_dtype(make_spec(**RELU), torch.bfloat16) == torch.bfloat16
    check(dtype=torch.bfloat16, **sizes)


@pytest.mark.parametrize("kind", ["points", "one set"])
def test_gradients_of_any_size_survive_float16(kind, mode):
    """float16 ends at 6e-8 and 65,504; weights in bfloat16 do not."""
    from ginr_fast.ops.field_mlp import kernels

    spec = make_spec(hidden_dim=128, activation="sine")
    weights = make_weights(spec, 3, torch.bfloat16)
    coords = make_coords(kind, 3, 20, 2)
    # An instance each.
    grad = (torch.randn(3, 20, 3) * torch.tensor([1e-9, 1e4, 1.0])[:, None, None]).bfloat16()
    got = kernels.backward(grad, coords, weights, spec, ["weights", "coords"])
    inputs = [coords.double().requires_grad_(), weights.double().requires_grad_()]
    out = reference.field_mlp(*inputs, spec)
    want = torch.autograd.grad(out, inputs, grad.double())
    assert got["coords"].dtype == got["weights"].dtype == torch.float32
    for found, expected in zip(got["weights"], want[1], strict=True):
        assert relative_error(found, expected) <= 7.5e-2
    for found, expected in zip(got["coords"], want[0], strict=True):
        assert relative_error(found, expected) <= 7.5e-2


def test_gradients_of_nothing_and_of_nan():
    from ginr_fast.ops.field_mlp import kernels

    spec = make_spec(**SINE)
    weights, coords = make_weights(spec, 2, torch.float16), make_coords("points", 2, 20, 2)
    grad = torch.zeros(2, 20, 3, dtype=torch.float16)
    assert kernels.backward(grad, coords, weights, spec, ["weights"])["weights"].eq(0).all()
    grad[1, 3] = float("nan")
    found = kernels.backward(grad, coords, weights, spec, ["weights"])["weights"]
    assert found[0].eq(0).all() and found[1].isnan().any()


def test_nan_shows(mode):
    for sizes in (RELU, SINE):
        spec = make_spec(**sizes)
        weights = make_weights(spec, 2)
        weights[1, spec.slots[2].offset] = float("nan")
        with ginr_fast.backend("triton"):
            out = field_mlp(make_coords("points", 2, 20, 2), weights, spec)
        assert out[0].isfinite().all() and out[1].isnan().all()


def sines(x):
    """sin x and cos x as the kernels compute them."""
    import triton
    import triton.language as tl

    from ginr_fast.ops.kernels import field_activations

    sine, cosine = field_activations.sine, field_activations.cosine

    @triton.jit
    def both(x_ptr, sine_ptr, cosine_ptr, COUNT: tl.constexpr):
        index = tl.arange(0, COUNT)
        x = tl.load(x_ptr + index)
        tl.store(sine_ptr + index, sine(x))
        tl.store(cosine_ptr + index, cosine(x))

    both.fn.__globals__.update(sine=sine, cosine=cosine, tl=tl)
    found = torch.empty_like(x), torch.empty_like(x)
    both[(1,)](x, *found, x.numel())
    return found


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_sines_over_the_range_of_phases():
    for largest in (1.0, 30.0, 1e3, 1e4):
        x = (torch.rand(1 << 14, dtype=torch.float64) * 2 - 1).mul(largest).float()
        for got, want in zip(sines(x), (x.double().sin(), x.double().cos()), strict=True):
            assert (got - want).abs().max() <= 3e-7, largest
    x = torch.tensor([1e5, -3e6, 1e8, 1e30, float("inf"), float("nan"), 0.0, -0.0])
    sine, cosine = sines(x)
    rounding = x[:2].abs().double() * 2**-23
    assert ((sine[:2] - x[:2].double().sin()).abs() <= rounding).all()
    assert ((cosine[:2] - x[:2].double().cos()).abs() <= rounding).all()
    assert sine[2:4].eq(0).all() and cosine[2:4].abs().eq(1).all()
    assert sine[4:6].isnan().all() and cosine[4:6].isnan().all()
    assert sine[6:].eq(0).all() and cosine[6:].eq(1).all()


def test_results_are_the_same_bit_for_bit(mode):
    from ginr_fast.ops.field_mlp import kernels

    spec = make_spec(hidden_dim=128, encoding=ENCODING)
    coords, weights = make_coords("one set", 3, 20, 2), make_weights(spec, 3)
    grad = torch.randn(3, 20, 3)
    first, second = (
        [
            kernels.forward(coords, weights, spec),
            *kernels.backward(grad, coords, weights, spec, ["weights", "coords"]).values(),
        ]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("wanted", ["coords", "weights"])
def test_only_needed_gradients_are_computed(wanted, mode, monkeypatch):
    from ginr_fast.ops.field_mlp import kernels_backward
    from ginr_fast.ops.kernels import launch

    spec = make_spec(**RELU, encoding=ENCODING)
    coords, weights = make_coords("points", 2, 20, 2), make_weights(spec, 2)
    names, products = [], []
    original, product = launch.launch, kernels_backward._product

    def spy(kernel, *arguments):
        names.append(kernel.fn.__name__)
        return original(kernel, *arguments)

    for module in ("field_layers", "field_chains", "fourier"):
        monkeypatch.setattr(f"ginr_fast.ops.kernels.{module}.launch", spy)
    monkeypatch.setattr(
        kernels_backward, "_product", lambda *both: products.append(1) or product(*both)
    )
    grad = torch.randn(2, 20, 3)
    found = kernels_backward.Backward(kernels_backward.Call(coords, weights, spec), [wanted]).run(
        grad
    )
    assert list(found) == [wanted]
    assert ("field_coords_kernel" in names) == (wanted == "coords")
    assert ("fourier_kernel" in names) == bool(products) == (wanted == "weights")
    assert ("field_chain_kernel" in names) == (mode == "chain")
    assert ("field_backward_kernel" in names) == (mode != "chain")


@pytest.mark.parametrize("hidden_dim", [128, 256])
def test_workspace_does_not_grow_with_the_points(hidden_dim):
    from ginr_fast.ops.field_mlp import kernels
    from ginr_fast.ops.kernels import launch

    spec = make_spec(hidden_dim=hidden_dim, hidden_layers=3)
    own = {"coords_ptr", "grad_ptr", "out_ptr"}
    largest = []
    for points in (1 << 20, 1 << 22):
        coords = torch.empty(4, points, 2, device="meta")
        weights = torch.empty(4, spec.parameter_count, dtype=torch.float16, device="meta")
        grad = weights.new_empty(4, points, 3)
        launch._overrides.clear()  # the sizes of the table, until the fixture puts them back
        with launch.recording("sm_90") as launches:
            kernels.forward(coords, weights, spec)
            kernels.backward(grad, coords, weights, spec, ["weights"])
        sizes = [
            tensor.numel()
            for each in launches
            for name, tensor in each.arguments.items()
            if isinstance(tensor, torch.Tensor) and name not in own
        ]
        largest.append((max(sizes), len(launches)))
    assert largest[0][0] == largest[1][0] and largest[0][1] < largest[1][1]


@pytest.mark.parametrize("dtype", triton_backend.WIDEST_HEAD, ids=str)
@pytest.mark.parametrize("family", ["sm_80", "sm_90", "sm_100", "small"])
def test_every_size_has_an_entry_in_the_table(family, dtype):
    from ginr_fast.ops.kernels import launch

    kinds = [kind for kind in launch._table() if "field" in kind]
    assert len(kinds) == 12
    launch._overrides.clear()
    with launch.recording(family):
        for kind in kinds:
            for width in (64, 128, 256, 512):
                assert isinstance(launch.tiles(kind, torch.device("cpu"), dtype, width), dict)


def test_inside_torch_compile():
    spec = make_spec(**RELU, encoding=ENCODING)
    coords, weights = make_coords("one set", 2, 20, 2), make_weights(spec, 2).requires_grad_()
    torch.compiler.reset()
    with ginr_fast.backend("triton"):
        compiled = torch.compile(field_mlp, fullgraph=True, backend="aot_eager")
        out = compiled(coords, weights, spec)
        (grad,) = torch.autograd.grad(out.sum(), weights)
        want = field_mlp(coords, weights, spec)
        (want_grad,) = torch.autograd.grad(want.sum(), weights)
    torch.testing.assert_close(out, want)
    torch.testing.assert_close(grad, want_grad)


def test_autocast_and_double_backward():
    spec = make_spec(**SINE)
    coords, weights = make_coords("points", 2, 20, 2), make_weights(spec, 2).requires_grad_()
    with ginr_fast.backend("triton"), torch.autocast("cpu", torch.float16):
        assert field_mlp(coords, weights, spec).dtype == torch.float16
    found = []
    for name in ("triton", "reference"):
        with ginr_fast.backend(name):
            out = field_mlp(coords, weights, spec)
            (slope,) = torch.autograd.grad(out.sum(), weights, create_graph=True)
            found += torch.autograd.grad(slope.square().sum(), weights)
    assert relative_error(*found) <= 1e-4


def test_empty_batches_and_no_coordinates():
    spec = make_spec(**RELU)
    weights = make_weights(spec, 2)
    with ginr_fast.backend("triton"):
        assert field_mlp(torch.rand(5, 2), weights[:0], spec).shape == (0, 5, 3)
        assert field_mlp(torch.rand(0, 2), weights, spec).shape == (2, 0, 3)


def test_what_it_cannot_serve_says_why(monkeypatch):
    def reason(dtype=torch.float32, **changes):
        spec = make_spec(**changes)
        with ginr_fast.backend("triton"), pytest.raises(ginr_fast.BackendError) as error:
            directions = torch.rand(4, 3) if spec.view_dim else None
            coords = torch.rand(4, spec.coord_dim)
            field_mlp(coords, make_weights(spec, 2, dtype), spec, directions)
        return str(error.value)

    assert "float64" in reason(torch.float64)
    assert "without a view branch" in reason(view_dim=8, out_dim=4)
    assert "at most 512 wide, got 513" in reason(hidden_dim=513)
    assert "at most 16 outputs, got 17" in reason(out_dim=17)
    assert "at most 6 components, got 7" in reason(coord_dim=7)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "runs on a GPU, and the tensors are on cpu" in reason()
    monkeypatch.setattr(triton_backend, "_MISSING", "Triton is not installed")
    assert "Triton is not installed" in reason()
