"""``accelerate``: what it does to a live model, and the published modules before and after it."""

from __future__ import annotations

import copy
import doctest
import functools
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import adapter_models as published
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

import ginr_fast
from ginr_fast.adapters import Accelerated, Adapter, Match, Probe, frame, trans_inr
from ginr_fast.adapters.trans_inr import volume_rendering
from ginr_fast.systems.trans_inr import TransInr, TransInrConfig

POINTS = (2, 3, 5)  # instances, and two dimensions of coordinates


@contextmanager
def default(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def numbers(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def matrices(shapes, batch=2, scale=1.0):
    """Weights that keep activations in range."""
    return {
        name: numbers(batch, *shape, seed=index, scale=scale * (2 / shape[0]) ** 0.5)
        for index, (name, shape) in enumerate(shapes.items())
    }


@dataclass
class Case:
    """A published module, its inputs in float64 by name, and how it is called with them."""

    module: nn.Module
    call: Callable[..., Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)


def set_field(module, batch=2, **inputs):
    def call(module, **given):
        module.set_params({name: given[name] for name in module.param_shapes})
        return module(*(value for name, value in given.items() if name not in module.param_shapes))

    return Case(module, call, {**matrices(module.param_shapes, batch), **inputs})


def hyponet(encoding, modulated=(), alone=(), batch=2, **options):
    torch.manual_seed(0)
    config = published.hyponet_config(encoding, **options)
    module = published.HypoNet(config)
    bias = int(config.use_bias)
    small = 1 / 30 if config.activation.type == "siren" else 1.0
    given = {}
    for index in (*modulated, *alone):
        name = f"linear_wb{index}"
        rows, columns = module.params_shape_dict[name]
        size = small * columns**-0.5 if index in alone else 1.0
        given[name] = numbers(batch, rows - bias, columns, seed=index, scale=size)
        module.ignore_base_param_dict[name] = index in alone

    def call(module, coord, **given):
        return module(coord, modulation_params_dict=given or None)

    coord = numbers(batch, 3, 5, config.input_dim, seed=9, scale=0.3)
    return Case(module, call, {"coord": coord, **given})


def hyponet_with_params():
    case = hyponet("deterministic_transinr")
    case.inputs.update(matrices(case.module.params_shape_dict))
    case.call = lambda module, coord, **given: module.forward_with_params(coord, given)
    return case


def grouped(hyponet):
    torch.manual_seed(0)

    def call(module, data):
        made = module(data)
        assert made is module.hyponet
        return torch.cat([wb.flatten() for wb in made.params.values()])

    return Case(published.TransInr(hyponet, 4), call, {"data": numbers(2, 4, 3)})


def low_rank():
    torch.manual_seed(0)
    module = published.LowRankModulatedTransINR(published.hyponet_config(), rank=5)
    inputs = {"group_output": numbers(2, 5, 12), "coord": numbers(2, 7, 2, scale=0.3)}
    return Case(module, lambda module, **given: module(**given), inputs)


def factors():
    torch.manual_seed(0)
    module = published.ModulatedParamsFactors({"a": (6, 8)}, rank=3)

    def call(module, a):
        return module.compute_modulation_params_dict({"a": a})["a"]

    return Case(module, call, {"a": numbers(2, 6, 3)})


MLP = functools.partial(published.HypoMlp, 4, 2, 3, 16)
NERF = functools.partial(published.HypoNerf, depth=4, hidden_dim=16)
CASES = {
    "mlp": lambda: set_field(MLP(True, 8, 0.5, 1024), x=numbers(*POINTS, 2, scale=0.3)),
    "mlp without encoding": lambda: set_field(MLP(False, 8), x=numbers(*POINTS, 2)),
    "mlp, shared matrices": lambda: set_field(MLP(True, 8), 1, x=numbers(*POINTS, 2, scale=0.3)),
    "mlp, a point each": lambda: set_field(MLP(True, 8), x=numbers(2, 2, scale=0.3)),
    "nerf": lambda: set_field(NERF(pe_dim=10), x=numbers(*POINTS, 3)),
    "nerf without encoding": lambda: set_field(NERF(use_pe=False), x=numbers(2, 6, 3)),
    "nerf with views": lambda: set_field(
        NERF(True, pe_dim=10), x=numbers(*POINTS, 3), viewdirs=numbers(*POINTS, 3, seed=1)
    ),
    "grouped mlp": lambda: grouped(MLP(True, 8)),
    "grouped nerf": lambda: grouped(NERF(True, pe_dim=10)),
    "ipc": lambda: hyponet("deterministic_transinr", alone=(1,)),
    "ipc, base weights": lambda: hyponet("deterministic_transinr"),
    "ipc, times base, normalised": lambda: hyponet(
        "deterministic_transinr_nerf", (0, 3), normalize_weight=True, ff_sigma=8, output_bias=0.0
    ),
    "ipc, trained encoding": lambda: hyponet("deterministic_transinr", (1,), trainable=True),
    "ipc, random encoding": lambda: hyponet("random_gaussian", (1,), ff_sigma=4),
    "ipc, siren": lambda: hyponet(None, alone=(1,), activation="siren"),
    "ipc without bias": lambda: hyponet("random_gaussian", (0,), alone=(1,), use_bias=False),
    "ipc, whole matrices": hyponet_with_params,
    "ipc, low rank": low_rank,
    "ipc, factors": factors,
}


def outcome(case, dtype, second=False):
    """Values, gradients and second gradients of a case, on a copy of its module."""
    with default(dtype):
        module = copy.deepcopy(case.module).to(dtype)
        inputs = {
            name: value.to(dtype, copy=True).requires_grad_() for name, value in case.inputs.items()
        }
        leaves = [*inputs.values(), *(p for p in module.parameters() if p.requires_grad)]
        values = case.call(module, **inputs)
        along = numbers(*values.shape, seed=50).to(dtype)
        first = derivative((values * along).sum(), leaves, create_graph=second)
        if not second:
            return flat([values]), flat(first)
        total = sum((g * numbers(*g.shape, seed=51).to(dtype)).sum() for g in first)
        return flat([values]), flat(first), flat(derivative(total, leaves))


def derivative(value, leaves, create_graph=False):
    found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def apart(got, want):
    return float((got - want).detach().norm() / want.detach().norm())


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_are_those_of_the_published_code(name):
    case = CASES[name]()
    own, single = outcome(case, torch.float64, second=True), outcome(case, torch.float32)
    report = ginr_fast.accelerate(case.module)
    assert report.replaced and not report.left
    fast = outcome(case, torch.float64, second=True)
    for got, want in zip(fast, own, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))
    # In float32 a phase is rounded by both; its own error is then the bound.
    bounds = [
        max(bound, apart(a, b)) for bound, a, b in zip((2e-5, 1e-4), single, own, strict=False)
    ]
    for got, want, bound in zip(outcome(case, torch.float32), own, bounds, strict=False):
        assert apart(got, want) <= bound
    inputs = {name: value.float() for name, value in case.inputs.items()}
    assert ginr_fast.explain(case.call, case.module, **inputs).plans or name == "ipc, factors"


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("rand", [False, True])
@pytest.mark.parametrize("accelerated", [False, True])
def test_volume_rendering_is_the_published_function(views, rand, accelerated):
    case = set_field(NERF(views, pe_dim=10), rays_o=numbers(2, 3, 2, 3), rays_d=numbers(2, 3, 2, 3))

    def call(render, module, rays_o, rays_d, **given):
        module.set_params(given)
        torch.manual_seed(3)
        return render(module, rays_o, rays_d, 0.5, 2.5, 9, use_viewdirs=views, rand=rand)

    case.call = functools.partial(call, published.volume_rendering)
    own, single = outcome(case, torch.float64, second=True), outcome(case, torch.float32)
    if accelerated:
        ginr_fast.accelerate(case.module)
    case.call = functools.partial(call, volume_rendering)
    for got, want in zip(outcome(case, torch.float64, second=True), own, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-7 * float(want.abs().max()))
    # Jitter in float32 is of other numbers: both are compared as they are, each within its bound.
    assert apart(outcome(case, torch.float32)[0], single[0]) <= 4e-5


def test_volume_rendering_marches_rays_unless_somebody_listens():
    case = CASES["nerf"]()
    with default(torch.float64):
        case.call(case.module, **case.inputs)
        ginr_fast.accelerate(case.module)
        rays = numbers(2, 4, 3), numbers(2, 4, 3, seed=1)
        render = functools.partial(volume_rendering, case.module, *rays, 0.5, 2.5, 9)
        plans = ginr_fast.explain(render, use_viewdirs=False, rand=False).plans
        assert [plan.operator for plan in plans] == ["volume_render"]
        seen = []
        case.module.register_forward_hook(lambda *_: seen.append(1))
        plans = ginr_fast.explain(render, use_viewdirs=False, rand=False).plans
        assert [plan.operator for plan in plans] == ["field_mlp", "composite"] and seen


class Reader(nn.Module):
    """A user's model around a published one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inr, self.head = published.TransInr(MLP(True, 8, 0.5), 4), nn.Linear(3, 1)

    def forward(self, data, coords):
        return self.head(self.inr(data)(coords))


def reading(model):
    with torch.no_grad():
        return model(torch.ones(2, 4, 3), ginr_fast.grid(4, 4).tensor().repeat(2, 1, 1, 1))


def test_a_live_model_keeps_all_it_had():
    model = Reader()
    want, state = reading(model), copy.deepcopy(model.state_dict())
    names, text = [name for name, _ in model.named_parameters()], repr(model)
    calls = []
    model.inr.hyponet.register_forward_hook(lambda *_: calls.append(1))
    report = ginr_fast.accelerate(model, verify=True)
    assert [entry[:2] for entry in report.replaced] == [
        ("inr", "TransInr"),
        ("inr.hyponet", "HypoMlp"),
    ]
    assert "replaced: inr.hyponet (HypoMlp): field_mlp: 4 layers, width 16" in str(report)
    assert [entry.path for entry in report.verified] == ["inr", "inr.hyponet"]
    assert all(0 <= e.values < 1e-4 and 0 <= e.gradients < 1e-3 for e in report.verified)
    assert [name for name, _ in model.named_parameters()] == names and repr(model) == text
    assert model.inr.hyponet.params is not None  # nothing of the comparison stays
    assert isinstance(model.inr.hyponet, published.HypoMlp)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    torch.testing.assert_close(reading(model), want, rtol=1e-4, atol=1e-4)
    assert calls == [1]
    again = ginr_fast.accelerate(model, verify=True)
    assert again.replaced == report.replaced and len(again.verified) == 2
    assert type(model.inr).__mro__.count(Accelerated) == 1
    assert ginr_fast.restore(model) == ["inr", "inr.hyponet"] and ginr_fast.restore(model) == []
    assert type(model.inr) is published.TransInr
    assert torch.equal(reading(model), want)


def test_copies_are_accelerated_and_pickles_are_what_they_were(tmp_path):
    model = Reader()
    before = pickle.dumps(model)
    ginr_fast.accelerate(model)
    assert pickle.dumps(model) == before and b"ginr_fast" not in before
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert type(loaded.inr) is published.TransInr
    model.loop = [model]
    twin = copy.deepcopy(model)
    assert isinstance(twin.inr, Accelerated) and twin.loop[0] is twin
    twin.inr.wtokens.data.zero_()
    torch.testing.assert_close(reading(loaded), reading(model), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(reading(twin), reading(model), atol=1e-2)  # it reads its own


def test_a_class_that_copies_itself_still_does():
    module = CASES["ipc"]().module
    module.scale = nn.Parameter(torch.ones(2))
    parametrize.register_parametrization(module, "scale", nn.Identity())
    assert ginr_fast.accelerate(module).replaced
    twin = copy.deepcopy(module)
    assert isinstance(twin, Accelerated) and parametrize.is_parametrized(twin, "scale")
    assert twin.params_dict["linear_wb0"] is not module.params_dict["linear_wb0"]


def test_data_parallel_training_and_moves(tmp_path):
    model = Reader()
    ginr_fast.accelerate(model)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(model)
        coords = ginr_fast.grid(4, 4).tensor().repeat(2, 1, 1, 1)
        parallel(torch.ones(2, 4, 3), coords).square().mean().backward()
        dist.barrier()
        del parallel  # while its process group is there: afterwards both wait for each other
    finally:
        dist.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with default(torch.float64):
        assert model.double().inr.wtokens.dtype == torch.float64
        model(torch.ones(2, 4, 3), coords.double())


def test_what_the_fast_form_does_not_serve_runs_the_modules_own_code():
    case = hyponet(None, (1,), activation="siren", use_bias=False)
    module, given = case.module.half(), {name: t.half() for name, t in case.inputs.items()}
    want = case.call(module, **given)
    case.module.float()
    assert ginr_fast.accelerate(module).replaced
    assert torch.equal(case.call(module.half(), **given), want)  # half precision
    single = {name: t.float() for name, t in case.inputs.items()}
    with pytest.raises(KeyError, match="wb9"):
        module.float()(single["coord"], {"wb9": single["coord"]})
    mlp = set_field(MLP(True, 8, 0.5), x=numbers(*POINTS, 2))
    ginr_fast.accelerate(mlp.module)
    with pytest.raises(TypeError):  # no params
        mlp.module(torch.zeros(2, 3, 2))
    mlp.inputs = {name: value.float() for name, value in mlp.inputs.items()}
    served = ginr_fast.explain(mlp.call, mlp.module, **mlp.inputs).plans
    mlp.module.pe_sigma = 2.0  # an option changed later is one that was not compared
    assert len(served) == 1
    assert not ginr_fast.explain(mlp.call, mlp.module, **mlp.inputs).plans


class Leaky(nn.ReLU):
    def forward(self, x):
        return torch.maximum(x, 0.3 * x)


def test_an_activation_changed_afterwards_runs_the_modules_own_code():
    for name, place in (("mlp", "relu"), ("ipc", "activation")):
        case = CASES[name]()
        inputs = {name: value.float() for name, value in case.inputs.items()}
        ginr_fast.accelerate(case.module)
        setattr(case.module, place, Leaky())
        got = case.call(case.module, **inputs)
        ginr_fast.restore(case.module)
        assert torch.equal(got, case.call(case.module, **inputs))
        assert "activation is Leaky" in ginr_fast.accelerate(case.module).left[0].why


@pytest.mark.parametrize(
    "case", [CASES["mlp without encoding"](), hyponet(None, alone=(1,))], ids=["mlp", "ipc"]
)
def test_under_autocast(case):
    given = {name: value.float() for name, value in case.inputs.items()}
    want = case.call(case.module, **given)
    ginr_fast.accelerate(case.module)
    with torch.autocast("cpu", torch.bfloat16):
        if "linear_wb1" in given:  # what a product under autocast is
            given["linear_wb1"] = given["linear_wb1"].bfloat16()
        got = case.call(case.module, **given)
        assert ginr_fast.explain(case.call, case.module, **given).plans
    assert got.dtype == torch.bfloat16 and apart(got, want) <= 1.5e-2


def test_hooks_inside_a_module_fire():
    case, calls = CASES["mlp"](), []
    ginr_fast.accelerate(case.module)
    given = {name: value.float() for name, value in case.inputs.items()}
    want = case.call(case.module, **given)
    hook = case.module.relu.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(case.call(case.module, **given), want, rtol=1e-4, atol=1e-4)
    hook.remove()
    case.call(case.module, **given)
    assert len(calls) == case.module.depth - 1


def test_frequencies_are_read_again_when_they_change():
    case = hyponet("deterministic_transinr")
    ginr_fast.accelerate(case.module)
    coord = case.inputs["coord"].float()
    case.module(coord)
    with torch.no_grad():
        case.module.ff_linear.mul_(0.5)
    got = case.module(coord)
    ginr_fast.restore(case.module)
    torch.testing.assert_close(got, case.module(coord), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "ipc"])
def test_compiled_as_a_whole(name):
    case = CASES[name]()
    ginr_fast.accelerate(case.module)
    inputs = {name: value.float() for name, value in case.inputs.items()}
    want = case.call(case.module, **inputs)
    call = torch.compile(case.call, fullgraph=True, backend="eager")
    torch.testing.assert_close(call(case.module, **inputs), want, rtol=1e-4, atol=1e-4)


def test_what_is_left_alone_and_why():
    class Sharper(published.HypoMlp):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(published.HypoMlp):
        pass

    edited = type("HypoMlp", (nn.Module,), {**vars(published.HypoMlp), "forward": Sharper.forward})
    edited.forward = lambda self, x: published.HypoMlp.forward(self, x) + 0.1 * x[..., :1]
    patched = MLP(True, 8)
    patched.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "overridden": Sharper(4, 2, 3, 16, True, 8),
            "renamed": Renamed(4, 2, 3, 16, True, 8),
            "edited": edited_module(edited),
            "patched": patched,
            "deep": published.HypoMlp(1, 2, 3, 16, True, 8),
            "silu": hyponet("deterministic_transinr", activation="silu").module,
            "uneven": hyponet("deterministic_transinr", hidden_dim=(16, 8, 16)).module,
            "plain": published.ModulatedParamsFactors({"a": (6, 8)}, 3, use_factorization=False),
            "namesake": named("HypoMlp"),
            "unknown": nn.Sequential(nn.Linear(2, 2)),
        }
    )
    report = ginr_fast.accelerate(model)
    assert [entry.path for entry in report.replaced] == ["renamed"]
    why = {entry.path: entry.why for entry in report.left}
    assert why.keys() == model.keys() - {"renamed", "unknown"}
    assert why["overridden"] == "Sharper overrides forward"
    assert why["edited"].startswith("its forward gives other values than the published one")
    assert why["patched"] == "its forward was replaced on the instance"
    assert "depth: expected at least 2" in why["deep"]
    assert "activation is SiLU" in why["silu"] and "one width" in why["uneven"]
    assert why["namesake"] == "it has no convert_posenc, which TransINR's class of that name has"
    assert why["plain"] == "its modulations are not factorised"
    assert type(model["overridden"]) is Sharper and "left alone: silu (HypoNet)" in str(report)
    for unknown in (nn.Linear(2, 2), TransInr(TransInrConfig())):
        assert str(ginr_fast.accelerate(unknown)) == "nothing in the model was recognised"


def named(name):
    """A module of a class that has nothing but the name in common with a published one."""
    return type(name, (nn.Module,), {"forward": lambda self, x: x})()


def edited_module(kind):
    """A module of a class that has the published name and attributes, and was changed."""
    module = MLP(True, 8)
    module.__class__ = kind
    return module


def test_an_adapter_of_ones_own_and_bad_arguments():
    class Twice(nn.Module):
        def forward(self, x):
            return x + x

    def match(factor, module):
        probe = Probe(arguments=(torch.ones(3),))
        return Match("a product", {"forward": lambda m, original, x: factor * x}, (probe,))

    own = Adapter("mine", ("Twice",), functools.partial(match, 2))
    wrong = Adapter("mine", ("Twice",), functools.partial(match, 3))
    assert "other values" in ginr_fast.accelerate(Twice(), adapters=[wrong]).left[0].why
    module = Twice()
    report = ginr_fast.accelerate(module, adapters=[own])
    assert report.replaced == [("", "Twice", "a product")]
    asked = []
    again = ginr_fast.accelerate(module, adapters=[Adapter("mine", ("Twice",), asked.append)])
    assert again.replaced == report.replaced and not asked  # it was recognised already
    failing = Adapter("mine", ("Twice",), lambda module: module.nothing)
    why = ginr_fast.accelerate(Twice(), adapters=[failing]).left[0].why
    assert why.startswith("it is not as mine's class of that name: AttributeError")
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got int"):
        ginr_fast.accelerate(3)
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module"):
        ginr_fast.restore("model")


@pytest.mark.parametrize("module", [frame, trans_inr])
def test_examples_run(module):
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted and not found.failed
