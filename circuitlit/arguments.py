"""Arguments of another kind than a function's annotations say are refused where they are given, in one sentence."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, SupportsFloat, SupportsIndex, TypeVar, Union, get_args, get_origin

from circuitlit.errors import UserError

Given = ParamSpec("Given")
Made = TypeVar("Made")
LOOSER = {float: SupportsFloat, int: SupportsIndex}  # numpy's and torch's numbers are numbers
ADVICE = {  # how those are made that a function most often lacks
    "Subject": "load_subject(model)",
    "Pairs": "Pairs.from_list(rows), or a task: ioi(tokenizer, ...)",
    "PairsModule": "PairsModule(pairs, subject.tokenizer, batch_size, seed)",
    "Workbench": "Workbench.build(subject, PairsModule(...)), or result.live.bench of a circuit that was found",
    "Circuit": "load_circuit(path, subject.graph), or result.live.circuit of a circuit that was found",
    "Method": "Method.of(eap_ig, steps=5)",
}


def check_once(name: str, values: Sequence[object]) -> None:
    """Refuse a list that names something twice: its circuits would be counted as if they were several.

    Raises:
        UserError: it does.
    """
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise UserError(f"{name}={list(values)} names {twice} twice; leave one out")


def check_resamples(resamples: int) -> None:
    """Refuse a single bootstrap sample, which was taken for none.

    Raises:
        UserError: it is one.
    """
    if resamples == 1:
        raise UserError("resamples=1 has no spread; take at least 2, or 0 for none")


def check_shares(**shares: float) -> None:
    """Refuse what is no share.

    Raises:
        UserError: it is not between 0 and 1.
    """
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value} is not a share between 0 and 1")


def checks_arguments(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Have a public function refuse values of another kind than its annotations name.

    Classes, `None`, unions, literals, numbers, functions, and what mappings and sequences hold are looked at; whatever
    else an annotation says, and names that only a type checker sees, is let pass.

    A circuit and a workbench of another graph are refused, too.

    Raises:
        UserError: when the function is called so.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def checked(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if not hints:  # the first call: all modules are there
            hints.update(_hints(function, signature))
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # a missing or unknown argument, which Python itself tells best
            return function(*args, **kwargs)
        for name, value in given.items():
            if name in hints and not _fits(value, hints[name]):
                if isinstance(value, str) and (known := _choices(hints[name])):
                    raise UserError(f"{_name(function, args)}: {name}={value} is none of {', '.join(known)}")
                wanted = _said(hints[name])
                how = next(
                    (f"; give {text}" for kind, text in ADVICE.items() if kind in re.findall(r"\w+", wanted)), ""
                )
                raise UserError(f"{_name(function, args)}: {name} is of type {_kind(value)}, not {wanted}{how}")
        bench, circuit = given.get("bench"), given.get("circuit")
        if bench is not None and circuit is not None and circuit.graph != bench.subject.graph:
            known, wanted = (f"{g.n_layers} layers of {g.n_heads} heads" for g in (circuit.graph, bench.subject.graph))
            raise UserError(
                f"{_name(function, args)}: the circuit is of a model with {known}, the workbench's has {wanted}; "
                "give one of this model"
            )
        return function(*args, **kwargs)

    return checked


def _name(function: Callable[..., object], args: Sequence[object]) -> str:
    """As its user writes it."""
    return type(args[0]).__name__ if function.__name__ == "__init__" else function.__qualname__


def _hints(function: Callable[..., object], signature: inspect.Signature) -> dict[str, Any]:
    """Annotations by argument, without those that cannot be looked up."""
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.annotation is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        try:
            hint = parameter.annotation
            found[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint  # type: ignore[attr-defined]
        except NameError:  # imported for type checkers alone
            continue
    return found


def _fits(value: object, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if hint in (None, NoneType):
        return value is None
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind is not None and issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    if kind in (list, Sequence):
        own = str if get_origin(inner[0]) is Literal else inner[0]  # functions name the choices of a list themselves
        return isinstance(value, Sequence) and not isinstance(value, str) and all(_fits(one, own) for one in value)
    if kind is Callable:
        return callable(value)
    hint = LOOSER.get(hint, hint)
    try:
        return not isinstance(hint, type) or isinstance(value, hint)
    except TypeError:  # a protocol that instances cannot be asked for
        return True


def _choices(hint: Any) -> list[str]:
    """The texts that an annotation names one by one."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return [one for one in inner if isinstance(one, str)]
    return [text for one in inner for text in _choices(one)] if kind in (Union, UnionType) else []


def _said(hint: Any) -> str:
    """An annotation as Python writes it, by the last names alone."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " | ".join(_said(one) for one in inner)
    if inner and kind is not Callable:
        return f"{_said(kind)}[{', '.join(_said(one) for one in inner)}]"
    return "None" if hint is NoneType else getattr(hint, "__name__", str(hint))


def _kind(value: object) -> str:
    """The type of a value and of what it holds, likewise."""
    held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    inner = " | ".join(dict.fromkeys(type(one).__name__ for one in held))
    name = type(value).__name__
    return f"{name}[str, {inner}]" if isinstance(value, Mapping) else f"{name}[{inner}]" if inner else name
