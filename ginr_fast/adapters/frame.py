"""``accelerate``: other people's modules, recognised in a live model and made to run on ginr_fast.

A recognised module gets another class, a subclass of its own in which some methods are replaced;
nothing else about it changes, not even its ``__dict__``. Its state dict, parameters, hooks, device
and dtype moves are therefore what they were, and so are its pickles: they hold the module's own
class and load where ginr_fast is not installed (``accelerate`` it again after loading). A deep copy
is accelerated too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ginr_fast.adapters.probes import Probe, as_class, gradients_apart, values_apart
from ginr_fast.adapters.report import Difference, Left, Replaced, Report

FastMethod = Callable[..., Any]
"""``fast(module, original, *args, **kwargs)``, where ``original(*args, **kwargs)`` is the module's
own method; called for what the fast one does not serve."""

# Largest relative difference between what a published class computes and what its fast form does.
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 5e-2
# Its modules run on the operators already, under the names of published classes too.
_OWN_CODE = ("ginr_fast.systems.", "ginr_fast.decoders.", "ginr_fast.encoders.")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Match:
    """How a recognised module shall run.

    Args:
        runs_on: a few words for the report, "field_mlp: 5 layers, width 256".
        methods: the replacement of each method.
        probes: calls on which both forms must agree, or the module is left alone: at least one for
            each method.
        known: what the adapter wants to find again, as ``type(module).known``.
        calls: names of the children that the fast methods call as the module's own code does. While
            there are hooks on another, or in it, the module's own code runs, so that they fire.
    """

    runs_on: str
    methods: Mapping[str, FastMethod]
    probes: tuple[Probe, ...]
    known: object = None
    calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """What recognises a kind of module, and knows how it runs on ginr_fast.

    Args:
        name: whose code it is, for messages.
        classes: names of the classes it knows, wherever they are defined; a subclass counts unless
            it overrides one of ``relies_on``. Empty: ``match`` is shown every module.
        match: from a module to how it shall run; or to why it cannot, in words, for the report; or
            None where it is none of its own.
        relies_on: names of the methods whose meaning ``match`` takes for granted.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.adapters import Adapter, Match, Probe
        >>> class Doubling(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + x
        >>> adapter = Adapter("mine", ("Doubling",), lambda module: Match(
        ...     "one product", {"forward": lambda module, original, x: 2 * x},
        ...     (Probe(arguments=(torch.ones(3),)),)))
        >>> print(ginr_fast.accelerate(Doubling(), adapters=[adapter]))
        replaced: the model (Doubling): one product
    """

    name: str
    classes: tuple[str, ...]
    match: Callable[[nn.Module], Match | str | None]
    relies_on: tuple[str, ...] = ("forward",)

    def recognise(self, module: nn.Module) -> Match | str | None:
        """How a module shall run, or why it cannot, or None if it is of no known class."""
        kind = type(module)
        if self.classes:
            names = [base.__name__ for base in kind.__mro__]
            if not any(name in names for name in self.classes):
                return None
            for method in self.relies_on:
                owner = next((base for base in kind.__mro__ if method in vars(base)), None)
                if owner is None:
                    return f"it has no {method}, which {self.name}'s class of that name has"
                if owner.__name__ not in self.classes:
                    return f"{owner.__name__} overrides {method}"
        found = self.match(module)
        if isinstance(found, Match):
            replaced = {*self.relies_on, *found.methods} & module.__dict__.keys()
            if replaced:
                return f"its {', '.join(sorted(replaced))} was replaced on the instance"
        return found


class Accelerated:
    """What the class of an accelerated module has beside its own class and the fast methods."""

    own_class: ClassVar[type[nn.Module]]
    runs_on: ClassVar[str]
    known: ClassVar[object]

    # To those who ask, pickle above all, the module is of its own class.
    @property
    def __class__(self) -> type[Any]:
        return type(self).own_class

    @__class__.setter
    def __class__(self, kind: type[Any]) -> None:
        vars(object)["__class__"].__set__(self, kind)

    def __reduce_ex__(self, protocol: Any) -> Any:
        own = cast(nn.Module, self)
        return as_class(own, type(self).own_class).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own: Any = as_class(cast(nn.Module, self), type(self).own_class)
        if hasattr(own, "__deepcopy__"):
            memo.setdefault(id(memo), []).append(own)  # as long as its id is in the memo
            memo[id(self)] = twin = own.__deepcopy__(memo)
        else:
            make, arguments, state, *_ = own.__reduce_ex__(4)
            memo[id(self)] = twin = make(*arguments)
            twin.__setstate__(copy.deepcopy(state, memo))
        twin.__class__ = type(self)
        return twin


def accelerate(
    model: nn.Module, *, verify: bool = False, adapters: Iterable[Adapter] = ()
) -> Report:
    """Make the published decoders inside a model run on ginr_fast, in place.

    Modules are recognised by the names of their classes and by their attributes; code is imported
    from nowhere. Each is first run on a small random input in both forms, and is left alone if they
    differ, so that a class changed by its user stays what it is. Parameters and their names, hooks,
    ``state_dict``, ``deepcopy``, pickles, ``.to()`` and ``.half()`` are what they were; a call that
    the fast form does not serve (another dtype, say) runs the module's own code.

    Args:
        model: any module; it, and everything in it, is looked at. Being accelerated already is no
            harm.
        verify: also compare values and gradients of both forms of what was replaced, on random
            inputs, and put the differences into the report.
        adapters: of one's own, asked before those of ginr_fast.

    Returns:
        A :class:`~ginr_fast.adapters.Report`: what was replaced, what was left alone and why.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch, ginr_fast
        >>> print(ginr_fast.accelerate(torch.nn.Linear(2, 3)))
        nothing in the model was recognised
    """
    from ginr_fast.adapters.known import ADAPTERS

    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    asked = (*adapters, *ADAPTERS)
    report = Report()
    for path, module in list(model.named_modules()):
        name, done = type(module).__name__, isinstance(module, Accelerated)
        match = None
        if verify or not done:  # what is done already is recognised for its probes alone
            match = _recognised(as_class(module, type(module).own_class) if done else module, asked)
        if done:
            own, fast = type(module).own_class, type(module)
        elif isinstance(match, Match):
            own, fast = type(module), _accelerated(type(module), match)
            match = _refusal(module, own, fast, match.probes) or match
        if isinstance(match, str) and not done:
            report.left.append(Left(path, name, match))
        elif done or match is not None:
            module.__class__ = fast
            report.replaced.append(Replaced(path, name, fast.runs_on))
            if verify and isinstance(match, Match):
                report.verified += [
                    Difference(
                        path,
                        probe.method,
                        values_apart(module, own, fast, probe),
                        gradients_apart(module, own, fast, probe),
                    )
                    for probe in match.probes
                ]
    return report


def _recognised(module: nn.Module, adapters: Iterable[Adapter]) -> Match | str | None:
    """What the first adapter that knows a module says of it."""
    if type(module).__module__.startswith(_OWN_CODE):
        return None
    for adapter in adapters:
        try:
            found = adapter.recognise(module)
        except Exception as error:  # of a class that has the name alone in common
            return f"it is not as {adapter.name}'s class of that name: {error!r}"
        if found is not None:
            return found
    return None


def restore(model: nn.Module) -> list[str]:
    """Undo :func:`accelerate`: every module runs its own code again.

    Args:
        model: any module.

    Returns:
        The names of the modules that were restored; "" for the model itself.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import torch, ginr_fast
        >>> ginr_fast.restore(torch.nn.Linear(2, 3))
        []
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, Accelerated)]
    for _, module in found:
        module.__class__ = type(module).own_class
    return [path for path, _ in found]


def _name(module: object) -> str:
    return type(module).__name__


def _accelerated(own: type[nn.Module], match: Match) -> type[nn.Module]:
    """The subclass of a module's class that has the fast methods."""
    body: dict[str, Any] = {
        name: _method(fast, getattr(own, name), match.calls) for name, fast in match.methods.items()
    }
    body.update(own_class=own, runs_on=match.runs_on, known=match.known, __doc__=own.__doc__)
    body.update(__module__=own.__module__, __qualname__=own.__qualname__)
    return type(own.__name__, (Accelerated, own), body)


def _method(
    fast: FastMethod, original: Callable[..., Any], calls: tuple[str, ...]
) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for name, child in self.named_children():
            if name not in calls and any(has_hooks(module) for module in child.modules()):
                return original(self, *args, **kwargs)
        return fast(self, functools.partial(original, self), *args, **kwargs)

    return run


def has_hooks(module: nn.Module) -> bool:
    """Whether anybody listens to the calls of a module."""
    return any(getattr(module, hooks) for hooks in _HOOKS)


def _refusal(module: nn.Module, own: type, fast: type, probes: tuple[Probe, ...]) -> str | None:
    """Why a module keeps its own code after both forms ran, or None."""
    held = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in held):
        return None  # it has no numbers to compare yet
    coarse = torch.get_float32_matmul_precision() != "highest" or any(
        tensor.dtype in (torch.float16, torch.bfloat16) for tensor in held
    )
    for probe in probes:
        try:
            apart = values_apart(module, own, fast, probe)
        except Exception as error:  # of their code or of ours: it keeps what it has
            return f"its {probe.method} does not run on a sample: {error}"
        if apart > (_COARSE_TOLERANCE if coarse else _TOLERANCE):
            return (
                f"its {probe.method} gives other values than the published one "
                f"(relative difference {apart:.1e})"
            )
    return None
