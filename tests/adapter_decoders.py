"""Stand-ins for published decoders: the names, attributes and results of their classes, written
from their description. mNIF's ``LinearMixtureINR``, ANR's ``ANR``, LA-GINR as it is reimplemented.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- mNIF ---


class Sine(nn.Module):
    def __init__(self, w0: float):
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * x)


class FCBlock(nn.Module):
    """One network, or K of them stacked in every parameter."""

    def __init__(self, widths: list[int], w0: float, outermost_linear: bool, stacked: int = 0):
        super().__init__()
        layers = []
        for index, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
            linear, last = nn.Linear(fan_in, fan_out), index == len(widths) - 2
            if stacked:
                bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / w0
                weight = torch.empty(stacked, fan_out, fan_in).uniform_(-bound, bound)
                linear.weight = nn.Parameter(weight * math.sqrt(stacked))
                linear.bias = nn.Parameter(torch.randn(stacked, fan_out) / fan_in)
            parts = [linear] if last and outermost_linear else [linear, Sine(w0)]
            layers.append(nn.Sequential(*parts))
        self.net = nn.Sequential(*layers)

    def forward(self, coords: Tensor, params: dict[str, Tensor]) -> Tensor:
        x = coords
        for index, layer in enumerate(self.net):
            weight, bias = (params[f"net.{index}.0.{part}"] for part in ("weight", "bias"))
            x = x.matmul(weight.transpose(-1, -2)) + bias.unsqueeze(-2)
            x = layer[1](x) if len(layer) == 2 else x
        return x


class LinearMixtureINR(nn.Module):
    def __init__(
        self,
        width: int = 16,
        depth: int = 2,
        in_channels: int = 2,
        out_channels: int = 3,
        w0: float = 30.0,
        k_mixtures: int = 6,
        mixture_type: str = "layerwise",
        pred_type: str = "image",
        use_latent_embedding: bool = True,
        latent_channels: int = 9,
    ):
        super().__init__()
        self.k_mixtures, self.mixture_type, self.w0 = k_mixtures, mixture_type, w0
        self.use_latent_embedding, self.use_last_layer = use_latent_embedding, False
        widths = [in_channels, *[width] * (depth + 1), out_channels]
        self.model = FCBlock(widths, w0, pred_type == "scene")
        self.model_param = FCBlock(widths, w0, pred_type == "scene", stacked=k_mixtures)
        self.num_ctx_params = depth + 2
        shared = mixture_type == "all-layer"
        coefficients = k_mixtures * (1 if shared else self.num_ctx_params)
        if use_latent_embedding:
            self.latent_to_mixture: nn.Module = nn.Linear(latent_channels, coefficients)
            nn.init.constant_(self.latent_to_mixture.bias, 1 / k_mixtures)
            if mixture_type == "two-layers":
                self.latent_to_mixture = nn.Sequential(
                    nn.Linear(latent_channels, latent_channels),
                    nn.ReLU(),
                    nn.Linear(latent_channels, coefficients),
                )

    def get_mixture_weight(self, coefficients: Tensor) -> Tensor:
        if self.mixture_type == "all-layer":
            return coefficients.unsqueeze(2)
        return coefficients.view(-1, self.k_mixtures, self.num_ctx_params)

    def get_combined_weight(self, mixture: Tensor) -> dict[str, Tensor]:
        params = {}
        for index, (name, stacked) in enumerate(self.model_param.named_parameters()):
            column = slice(None) if self.mixture_type == "all-layer" else [index // 2]
            weighted = mixture[:, :, column] * stacked.flatten(1).unsqueeze(0)
            params[name] = weighted.sum(1).unflatten(1, stacked.shape[1:])
        return params

    def get_input_embedding(self, inputs: dict, context_params: Tensor) -> Tensor:
        return inputs["coords"]

    def forward(self, inputs, context_params=None, coefficients=None) -> dict:
        if self.use_latent_embedding:
            if coefficients is None:
                if context_params is None:
                    context_params = inputs["context_params"]
                coefficients = self.latent_to_mixture(context_params)
            mixture = self.get_mixture_weight(coefficients)
        elif context_params.ndim == 3:
            mixture = context_params
        else:
            batch = 1 if context_params.ndim == 1 else len(context_params)
            mixture = context_params.view(batch, self.k_mixtures, -1)
        x = self.get_input_embedding(inputs, mixture)
        out = self.model(x, params=self.get_combined_weight(mixture))
        out = self.last_layer(out) if self.use_last_layer else out
        return {"model_in": inputs, "model_out": out, "l1_mean": mixture.abs().mean()}


def published_rendering(prediction: dict, opt) -> dict:
    """mNIF's renderer for ``rgb_activation="no_use"``, ``density_activation="elu"``, on white."""
    out, rays = prediction["model_out"], prediction["model_in"]
    batch, samples, t = len(out), opt.num_samples_per_ray + 1, rays["t_vals"]
    rgb = out[..., :3].reshape(-1, samples, 3)
    density = out[..., -1:].reshape(-1, samples, 1)
    density = torch.clip(F.elu(density, alpha=0.1) + 0.1, 0, 10)
    intervals = torch.cat((t[..., 1:] - t[..., :-1], torch.full_like(t[..., :1], 1e10)), dim=-1)
    intervals = intervals * torch.norm(rays["rays_d"][..., None, :], dim=-1)
    alpha = 1 - torch.exp(-density[..., 0] * intervals)
    passed = torch.cumprod(1 - alpha[..., :-1] + 1e-10, dim=-1)
    weights = alpha * torch.cat((torch.ones_like(alpha[..., :1]), passed), dim=-1)
    color = (weights[..., None] * rgb).sum(-2) + (1 - weights.sum(-1)[..., None])
    prediction["model_out"] = color.reshape(batch, -1, 3)
    return prediction


# --- ANR ---


class Mish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


class SignalAttn(nn.Module):
    def __init__(self, dim: int, n_head: int, head_dim: int, att_threshold: float | None):
        super().__init__()
        inner = n_head * head_dim
        self.n_head, self.scale, self.att_threshold = n_head, head_dim**-0.5, att_threshold
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, inner, bias=False) for _ in range(3))
        self.to_out = nn.Linear(inner, dim)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for layer, x in ((self.to_q, features), (self.to_k, tokens), (self.to_v, tokens))
        )
        p = (q @ k.mT * self.scale).softmax(-1)
        if self.att_threshold is not None:
            p = p.clip(self.att_threshold) - self.att_threshold
            p = p / p.sum(-1, keepdim=True)
        return self.to_out((p @ v).transpose(1, 2).flatten(2))


class ANR(nn.Module):
    def __init__(
        self,
        depth: int = 3,
        in_dim: int = 2,
        out_dim: int = 3,
        hidden_dim: int = 16,
        n_head: int = 3,
        head_dim: int = 5,
        use_pe: bool = True,
        pe_dim: int = 8,
        pe_sigma: float = 32,
        out_scale: float = 1,
        out_bias: float = 0,
        att_threshold: float | None = None,
        activation: str = "relu",
        rescale: bool = False,
    ):
        super().__init__()
        self.use_pe, self.pe_dim, self.pe_sigma, self.depth = use_pe, pe_dim, pe_sigma, depth
        self.in_dim, self.rescale = in_dim, rescale
        self.res_dim = 0
        if in_dim * pe_dim != hidden_dim:
            self.pe_dim = hidden_dim // in_dim
            self.res_dim = hidden_dim - in_dim * self.pe_dim
        self.attn = SignalAttn(hidden_dim, n_head, head_dim, att_threshold)
        act = {"relu": nn.ReLU, "mish": Mish}[activation]
        inner = [nn.Sequential(nn.Linear(hidden_dim, hidden_dim), act()) for _ in range(depth - 1)]
        self.mlp = nn.Sequential(*inner, nn.Linear(hidden_dim, out_dim))
        self.out_scale, self.out_bias = out_scale, out_bias
        self.params: dict[str, Tensor] | None = None

    def set_params(self, params: dict[str, Tensor]) -> None:
        self.params = params

    def convert_posenc(self, x: Tensor) -> Tensor:
        w = torch.exp(torch.linspace(0, math.log(self.pe_sigma), self.pe_dim // 2))
        x = torch.matmul(x.unsqueeze(-1), w.unsqueeze(0)).flatten(-2)
        return torch.cat((torch.cos(math.pi * x), torch.sin(math.pi * x)), dim=-1)

    def forward(self, x: Tensor, **kwargs) -> Tensor:
        batch, query_shape = x.shape[0], x.shape[1:-1]
        x = x.view(batch, -1, x.shape[-1])
        x = self.convert_posenc(x) if self.use_pe else x
        if self.res_dim > 0:
            x = torch.cat((x, torch.zeros(*x.shape[:2], self.res_dim)), dim=-1)
        assert self.params is not None
        x = self.mlp(self.attn(x, self.params["dtoken"]))
        x = x.view(batch, *query_shape, -1) * self.out_scale + self.out_bias
        return 2 * x - 1 if self.rescale else x


# --- LA-GINR ---


class FusedAttention(nn.Module):
    """``to_kv`` for keys and values; heads of a width of their own."""

    def __init__(self, dim: int, context_dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(context_dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), *self.to_kv(context).chunk(2, dim=-1))
        )
        p = (q @ k.mT * self.scale).softmax(-1)
        return self.to_out((p @ v).transpose(1, 2).flatten(2))


class SeparateAttention(FusedAttention):
    """``q_proj``, ``k_proj``, ``v_proj``, with biases, and no output projection but a dropout."""

    def __init__(self, dim: int, context_dim: int, heads: int, dim_head: int):
        nn.Module.__init__(self)
        self.num_heads = heads
        self.q_proj = nn.Linear(dim, heads * dim_head)
        self.k_proj = nn.Linear(context_dim, heads * dim_head)
        self.v_proj = nn.Linear(context_dim, heads * dim_head)
        self.out_proj = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            layer(value).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, value in (
                (self.q_proj, x),
                (self.k_proj, context),
                (self.v_proj, context),
            )
        )
        p = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((p @ v).transpose(1, 2).flatten(2))


class MultiheadAttention(nn.MultiheadAttention):
    """PyTorch's, with a call like the others."""

    def __init__(self, dim: int, context_dim: int, heads: int, dim_head: int):
        super().__init__(dim, heads, kdim=context_dim, vdim=context_dim, batch_first=True)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, context, context)[0]


class LAINRDecoder(nn.Module):
    """The layout in public research code: frequencies from 10, the features of a coordinate its
    sines and then its cosines, and the coordinates of the first instance for all."""

    def __init__(
        self,
        feature_dim: int = 24,
        input_dim: int = 2,
        output_dim: int = 3,
        sigma_q: float = 16,
        sigma_ls: tuple[float, ...] = (32, 20),
        hidden_dim: int = 18,
        context_dim: int = 11,
        attention: type[nn.Module] = FusedAttention,
        heads: int = 2,
        dim_head: int = 9,
        lowest: float = 10.0,
    ):
        super().__init__()
        self.layer_num, n = len(sigma_ls), feature_dim // (2 * input_dim)
        low = math.log10(lowest)
        self.omegas = torch.logspace(low, math.log10(sigma_q), n)
        self.omegas_l = [torch.logspace(low, math.log10(sigma), n) for sigma in sigma_ls]
        self.query_lin = nn.Linear(feature_dim, hidden_dim)
        self.modulation_ca = attention(hidden_dim, context_dim, heads, dim_head)
        bands = range(self.layer_num)
        self.bandwidth_lins = nn.ModuleList(nn.Linear(feature_dim, hidden_dim) for _ in bands)
        self.modulation_lins = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands)
        self.hv_lins = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in bands[1:])
        self.out_lins = nn.ModuleList(nn.Linear(hidden_dim, output_dim) for _ in bands)

    def calc_gamma(self, x: Tensor, omegas: Tensor) -> Tensor:
        phase = math.pi * x.unsqueeze(-1) * omegas
        return torch.cat((phase.sin(), phase.cos()), dim=-1).flatten(-2)

    def coordinates(self, x: Tensor) -> Tensor:
        return x[:1].expand(len(x), -1, -1)

    def query(self, x: Tensor) -> Tensor:
        return F.relu(self.query_lin(self.calc_gamma(x, self.omegas)))

    def modulated(self, feature: Tensor, modulation: Tensor) -> Tensor:
        return F.relu(feature + modulation)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        shape, x = x.shape, self.coordinates(x.flatten(1, -2))
        m = self.modulation_ca(self.query(x), tokens)
        h: Tensor | None = None
        outputs = []
        for level in range(self.layer_num):
            gamma = self.calc_gamma(x, self.omegas_l[level])
            feature = F.relu(self.bandwidth_lins[level](gamma))
            band = self.modulated(feature, self.modulation_lins[level](m))
            h = band if h is None else F.relu(self.hv_lins[level - 1](band + h))
            outputs.append(self.out_lins[level](h))
        return torch.stack(outputs).sum(0).view(*shape[:-1], -1)


# --- what changes a linear layer ---


class LowRankLinear(nn.Linear):
    """A linear layer and a product of low rank, as a subclass (loralib)."""

    def __init__(self, base: nn.Linear):
        super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.down = nn.Parameter(torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.randn(base.out_features, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down.T @ self.up.T


class WrappedLinear(nn.Module):
    """The same around a layer whose attributes it has (peft)."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base, self.added = base, LowRankLinear(base)
        self.in_features, self.out_features = base.in_features, base.out_features

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x)


# --- comparing a module with its accelerated self ---


def derivatives(call, leaves: list[Tensor]) -> list[Tensor]:
    """What ``call()`` gives, the gradients of a random sum of it, and those of their squares."""
    out = call()
    generator = torch.Generator().manual_seed(7)
    along = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    first = torch.autograd.grad(
        out, leaves, along, create_graph=True, allow_unused=True, materialize_grads=True
    )
    total = torch.stack([grad.square().mean() for grad in first]).sum()
    second = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [out.detach(), *(grad.detach() for grad in (*first, *second))]


def apart(got: list[Tensor], want: list[Tensor]) -> list[float]:
    """‖got − want‖ / ‖want‖ of each; of what is nearly zero (a softmax does not see a bias of its
    keys) in units of 1e-3."""
    assert [tensor.shape for tensor in got] == [tensor.shape for tensor in want]
    return [
        ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-3)).item()
        for a, b in zip(got, want, strict=True)
    ]
