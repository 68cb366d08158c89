"""Stand-ins for published modules: the same names, attributes and arithmetic, in few lines.

Those of TransINR (github.com/yinboc/trans-inr) and IPC (github.com/kakaobrain/ginr-ipc).
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_bias(x: Tensor, wb: Tensor) -> Tensor:
    """A layer whose bias is the last row of its matrix."""
    return torch.cat((x, torch.ones(*x.shape[:-1], 1, device=x.device)), dim=-1) @ wb


def features(phase: Tensor) -> Tensor:
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


class SetField(nn.Module):
    """What HypoMlp and HypoNerf share."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.params: dict[str, Tensor] | None = None

    def set_params(self, params: dict[str, Tensor]) -> None:
        self.params = params


class HypoMlp(SetField):
    def __init__(
        self, depth, in_dim, out_dim, hidden_dim, use_pe, pe_dim, out_bias=0, pe_sigma=1024
    ):
        super().__init__()
        self.depth, self.use_pe, self.pe_dim = depth, use_pe, pe_dim
        self.pe_sigma, self.out_bias = pe_sigma, out_bias
        widths = [in_dim * pe_dim if use_pe else in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.param_shapes = {f"wb{i}": (widths[i] + 1, widths[i + 1]) for i in range(depth)}

    set_params = SetField.set_params

    def convert_posenc(self, x):
        w = torch.linspace(0, math.log(self.pe_sigma), self.pe_dim // 2, device=x.device).exp()
        return features(math.pi * (x.unsqueeze(-1) * w).flatten(-2))

    def forward(self, x):
        h = x.reshape(x.shape[0], -1, x.shape[-1])
        h = self.convert_posenc(h) if self.use_pe else h
        for layer in range(self.depth - 1):
            h = self.relu(with_bias(h, self.params[f"wb{layer}"]))
        h = with_bias(h, self.params[f"wb{self.depth - 1}"]) + self.out_bias
        return h.reshape(*x.shape[:-1], -1)


class HypoNerf(SetField):
    def __init__(self, use_viewdirs=False, depth=6, hidden_dim=256, use_pe=True, pe_dim=40):
        super().__init__()
        self.use_viewdirs, self.depth = use_viewdirs, depth
        self.use_pe, self.pe_dim = use_pe, pe_dim
        widths = [3 * pe_dim if use_pe else 3, *[hidden_dim] * (depth - 1)]
        shapes = {f"wb{i}": (widths[i] + 1, hidden_dim) for i in range(depth - 1)}
        if use_viewdirs:
            shapes["viewdirs_fc"] = (4, hidden_dim // 2)
            shapes["density_fc"] = (hidden_dim + 1, 1)
            shapes["rgb_fc1"] = (hidden_dim + hidden_dim // 2 + 1, hidden_dim)
            shapes["rgb_fc2"] = (hidden_dim + 1, 3)
        else:
            shapes["rgb_density_fc"] = (hidden_dim + 1, 4)
        self.param_shapes = shapes

    set_params = SetField.set_params

    def convert_posenc(self, x):
        w = 2 ** torch.linspace(0, 8, self.pe_dim // 2, device=x.device)
        return features((x.unsqueeze(-1) * w).flatten(-2))

    def forward(self, x, viewdirs=None):
        given = self.params
        h = x.reshape(x.shape[0], -1, 3)
        h = self.convert_posenc(h) if self.use_pe else h
        for layer in range(self.depth - 1):
            h = self.relu(with_bias(h, given[f"wb{layer}"]))
        if not self.use_viewdirs:
            return with_bias(h, given["rgb_density_fc"]).reshape(*x.shape[:-1], -1)
        view = F.normalize(viewdirs.reshape(x.shape[0], -1, 3), dim=-1)
        view = self.relu(with_bias(view, given["viewdirs_fc"]))
        rgb = self.relu(with_bias(torch.cat((h, view), dim=-1), given["rgb_fc1"]))
        out = (with_bias(rgb, given["rgb_fc2"]), with_bias(h, given["density_fc"]))
        return torch.cat(out, dim=-1).reshape(*x.shape[:-1], -1)


class TransInr(nn.Module):
    """Its tokenizer and its Transformer stand for the real ones by a linear map each."""

    def __init__(self, hyponet, n_groups, dim=12):
        super().__init__()
        self.tokenizer, self.hyponet = nn.Linear(3, dim), hyponet
        self.transformer_encoder = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.base_params, self.wtoken_postfc = nn.ParameterDict(), nn.ModuleDict()
        self.wtoken_rng, count = {}, 0
        for name, (rows, columns) in hyponet.param_shapes.items():
            groups = min(n_groups, columns)
            self.base_params[name] = nn.Parameter(torch.randn(rows, columns))
            self.wtoken_postfc[name] = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, rows - 1))
            self.wtoken_rng[name] = (count, count + groups)
            count += groups
        self.wtokens = nn.Parameter(torch.randn(count, dim))

    def forward(self, data):
        tokens = self.tokenizer(data)
        own = self.wtokens.repeat(tokens.shape[0], 1, 1)
        read = self.transformer_encoder(torch.cat((tokens, own), dim=1))[:, -len(self.wtokens) :]
        made = {}
        for name, (_, columns) in self.hyponet.param_shapes.items():
            base = self.base_params[name].repeat(tokens.shape[0], 1, 1)
            first, last = self.wtoken_rng[name]
            group = self.wtoken_postfc[name](read[:, first:last]).transpose(1, 2)
            weight = base[:, :-1] * group.repeat(1, 1, columns // group.shape[2])
            made[name] = torch.cat((F.normalize(weight, dim=1), base[:, -1:]), dim=1)
        self.hyponet.set_params(made)
        return self.hyponet


def volume_rendering(nerf, rays_o, rays_d, near, far, points_per_ray, use_viewdirs, rand):
    batch, shape = rays_o.shape[0], rays_o.shape
    origins, directions = rays_o.reshape(batch, -1, 1, 3), rays_d.reshape(batch, -1, 1, 3)
    rays = origins.shape[1]
    t = torch.linspace(near, far, points_per_ray).repeat(rays, 1)
    if rand:
        t = t + torch.rand(rays, points_per_ray) * (far - near) / (points_per_ray - 1)
    points = origins + directions * t[None, :, :, None]
    more = {}
    if use_viewdirs:
        more["viewdirs"] = directions.expand_as(points).reshape(batch, -1, 3)
    raw = nerf(points.reshape(batch, -1, 3), **more).reshape(batch, rays, points_per_ray, 4)
    delta = torch.cat((t[:, 1:] - t[:, :-1], torch.full_like(t[:, :1], 1e-3)), dim=-1)
    alpha = 1 - torch.exp(-raw[..., 3].relu() * delta)
    passed = (1 - alpha + 1e-10).clamp(max=1)[..., :-1].cumprod(-1)
    weights = alpha * torch.cat((torch.ones_like(alpha[..., :1]), passed), dim=-1)
    seen = (weights.unsqueeze(-1) * raw[..., :3].sigmoid()).sum(-2)
    return (seen + 1 - weights.sum(-1, keepdim=True)).reshape(shape)


class Sine(nn.Module):
    def __init__(self, w0):
        super().__init__()
        self.w0 = w0

    def forward(self, x):
        return (self.w0 * x).sin()


def hyponet_config(
    encoding="deterministic_transinr",
    *,
    activation="relu",
    layers=4,
    hidden_dim=(16,),
    use_bias=True,
    normalize_weight=False,
    output_bias=0.5,
    trainable=False,
    ff_dim=8,
    ff_sigma=64,
    input_dim=2,
    output_dim=3,
):
    mapping = SimpleNamespace(
        use_ff=encoding is not None,
        type=encoding,
        ff_dim=ff_dim,
        ff_sigma=ff_sigma,
        trainable=trainable,
    )
    return SimpleNamespace(
        n_layer=layers,
        hidden_dim=list(hidden_dim),
        use_bias=use_bias,
        input_dim=input_dim,
        output_dim=output_dim,
        output_bias=output_bias,
        normalize_weight=normalize_weight,
        fourier_mapping=mapping,
        activation=SimpleNamespace(type=activation, siren_w0=30.0),
    )


class HypoNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.ff_config = config, config.fourier_mapping
        self.use_bias, self.use_ff = config.use_bias, self.ff_config.use_ff
        self.output_bias, self.normalize_weight = config.output_bias, config.normalize_weight
        kinds = {"relu": nn.ReLU, "silu": nn.SiLU, "siren": lambda: Sine(30.0)}
        self.activation = kinds[config.activation.type]()
        hidden = config.hidden_dim
        hidden = hidden * (config.n_layer - 1) if len(hidden) == 1 else hidden
        ff = self.ff_config
        first = 2 * ff.ff_dim if self.use_ff else config.input_dim
        widths = [first, *hidden, config.output_dim]
        self.params_shape_dict = {
            f"linear_wb{i}": (widths[i] + self.use_bias, widths[i + 1])
            for i in range(config.n_layer)
        }
        self.params_dict = nn.ParameterDict(
            {n: torch.randn(shape) / shape[0] for n, shape in self.params_shape_dict.items()}
        )
        self.ignore_base_param_dict = {name: False for name in self.params_shape_dict}
        if self.use_ff:
            count = ff.ff_dim // config.input_dim
            made = {
                "deterministic_transinr": torch.linspace(0, math.log(ff.ff_sigma), count).exp(),
                "deterministic_transinr_nerf": 2 ** torch.linspace(0, ff.ff_sigma, count),
                "random_gaussian": torch.randn(config.input_dim, ff.ff_dim) * ff.ff_sigma,
            }
            self.ff_linear = nn.Parameter(made[ff.type], requires_grad=ff.trainable)

    def check_valid_param_keys(self, params_dict):
        for name in params_dict:
            if name not in self.params_shape_dict:
                raise KeyError(name)

    def fourier_mapping(self, coord):
        if self.ff_config.type == "random_gaussian":
            return features(math.pi * (coord @ self.ff_linear))
        phase = (coord.unsqueeze(-1) * self.ff_linear).flatten(-2)
        return features(phase if self.ff_config.type.endswith("nerf") else math.pi * phase)

    def _through(self, coord, matrices):
        h = coord.reshape(coord.shape[0], -1, coord.shape[-1])
        h = self.fourier_mapping(h) if self.use_ff else h
        for index, matrix in enumerate(matrices):
            h = with_bias(h, matrix) if self.use_bias else torch.bmm(h, matrix)
            h = h if index == len(matrices) - 1 else self.activation(h)
        return (h + self.output_bias).reshape(*coord.shape[:-1], -1)

    def forward(self, coord, modulation_params_dict=None):
        given = modulation_params_dict or {}
        self.check_valid_param_keys(given)
        matrices = []
        for name, base in self.params_dict.items():
            base = base.repeat(coord.shape[0], 1, 1)
            weight, bias = (base[:, :-1], base[:, -1:]) if self.use_bias else (base, base[:, :0])
            modulation = given.get(name, torch.ones_like(weight))
            weight = modulation if self.ignore_base_param_dict[name] else weight * modulation
            weight = F.normalize(weight, dim=1) if self.normalize_weight else weight
            matrices.append(torch.cat((weight, bias), dim=1))
        return self._through(coord, matrices)

    def forward_with_params(self, coord, params_dict):
        self.check_valid_param_keys(params_dict)
        return self._through(coord, [params_dict[name] for name in self.params_shape_dict])


class LowRankModulatedTransINR(nn.Module):
    """The part that makes modulations from what the Transformer gave."""

    def __init__(self, config, rank, modulated=(1,), dim=12):
        super().__init__()
        self.hyponet = HypoNet(config)
        self.shared_factor, self.group_modulation_postfc = nn.ParameterDict(), nn.ModuleDict()
        places, count = {}, 0
        for index, (name, (rows, columns)) in enumerate(self.hyponet.params_shape_dict.items()):
            if index not in modulated:
                continue
            fan_in = rows - config.use_bias
            self.hyponet.ignore_base_param_dict[name] = True
            self.shared_factor[name] = nn.Parameter(torch.randn(1, rank, columns) / rank**0.5)
            self.group_modulation_postfc[name] = nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, fan_in)
            )
            places[name] = (count, count + rank)
            count += rank
        self.weight_groups, self.num_group_total = SimpleNamespace(group_idx_dict=places), count

    def predict_group_modulations(self, group_output):
        found = {}
        for name, (first, last) in self.weight_groups.group_idx_dict.items():
            own = self.group_modulation_postfc[name](group_output[:, first:last]).transpose(1, 2)
            found[name] = torch.bmm(own, self.shared_factor[name].repeat(len(own), 1, 1))
        return found

    def forward(self, group_output, coord):
        return self.hyponet(coord, self.predict_group_modulations(group_output))


class ModulatedParamsFactors(nn.Module):
    def __init__(self, shapes, rank, use_factorization=True):
        super().__init__()
        self.init_modulation_factors, self.shared_factors = nn.ParameterDict(), nn.ParameterDict()
        for name, (fan_in, fan_out) in shapes.items():
            self.init_modulation_factors[name] = nn.Parameter(torch.randn(fan_in, rank))
            self.shared_factors[name] = (
                nn.Parameter(torch.randn(rank, fan_out)) if use_factorization else None
            )

    def compute_modulation_params_dict(self, modulation_factors_dict):
        return {
            name: factor
            if self.shared_factors[name] is None
            else torch.bmm(factor, self.shared_factors[name].repeat(len(factor), 1, 1))
            for name, factor in modulation_factors_dict.items()
        }
