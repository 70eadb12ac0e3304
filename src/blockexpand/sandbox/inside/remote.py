"""Two interpreters that use each other's objects, one of which must not be trusted by the other.

In: a pair of pipes. Out: `Peer`, which asks and serves, and `Remote`, what an object of the other side looks like here.

The program's side serves everything. The tests' side (`strict`) serves only what the tests themselves handed over: a
function is called, a public attribute of an instance of the tests' own classes is read or set, an iterator goes on.
There, what an object of the program is compared or computed with never reaches a plain value: it equals no plain value,
orders with none, and an operator between the two may give another such object, never a number or a truth. An object
that claims to equal everything is thus worth nothing; one that gives the right number when called is all we ask.
"""

from __future__ import annotations

import builtins
import operator

from blockexpand.sandbox.inside import codec, values

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` would cost a third of the start
    from collections.abc import Callable
    from typing import Any

FOREIGN = BaseException
"""What code that is not ours may raise: anything. It is caught in three places, each handing it to whoever asked."""

_ONE = {
    "len": len, "iter": iter, "next": next, "bool": bool, "str": str, "repr": repr, "int": int, "float": float,
    "index": operator.index, "hash": hash, "neg": operator.neg, "pos": operator.pos, "abs": abs,
    "invert": operator.invert, "reversed": reversed, "enter": lambda o: o.__enter__(),
}  # fmt: skip
_ITEMS = {
    "getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem,
    "exit": lambda o, *a: o.__exit__(*a),
}  # fmt: skip
_COMPUTE = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift")
_ORDER = ("lt", "le", "gt", "ge")


def _operators() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {**_ONE, **_ITEMS, "eq": operator.eq, "ne": operator.ne}
    found["instancecheck"] = lambda kind, value: isinstance(value, kind)
    for name in (*_COMPUTE, *_ORDER):
        found[name] = vars(operator)[f"__{name}__"]
    for name in _COMPUTE:
        found[f"r{name}"] = lambda mine, other, compute=found[name]: compute(other, mine)
    return found


_OPERATORS = _operators()


class Remote:
    """An object of the other side. What is done to it is asked for there."""

    __slots__ = ("_at", "_peer")

    def __init__(self, peer: Peer, at: int) -> None:
        """Number `at` of what `peer`'s other side has handed over."""
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_at", at)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Calls it; what it does to lists, dictionaries and sets is done to those given."""
        result, after = self._peer.ask("call", self, list(arguments), named)
        for mine, changed in zip(arguments, after, strict=False):
            _follow(mine, changed)
        return result

    def __getattr__(self, name: str) -> Any:
        return self._peer.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self, name, value)

    def __eq__(self, other: object) -> bool:
        return self._at == other._at or bool(self._peer.ask("eq", self, other)) if isinstance(other, Remote) else False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, Remote) and bool(self._peer.ask("instancecheck", self, instance))


def _follow(mine: Any, changed: Any) -> None:
    """What a call did to an argument, done here too."""
    if type(mine) is list and type(changed) is list:
        mine[:] = changed
    elif type(mine) in (dict, set) and type(changed) is type(mine):
        mine.clear()
        mine.update(changed)


def _ask_for(name: str, plain_result: bool) -> Callable[..., Any]:
    def operate(self: Remote, *others: Any) -> Any:
        result = self._peer.ask(name, self, *others)
        trusted = plain_result or not self._peer.strict or isinstance(result, Remote)
        if not trusted and any(not isinstance(other, Remote) for other in others):
            raise TypeError(f"{name}: an object of the program's decides nothing about a plain value")
        return result

    return operate


for _name in (*_ONE, *_ITEMS):
    setattr(Remote, f"__{_name}__", _ask_for(_name, plain_result=True))
for _name in (*_COMPUTE, *(f"r{name}" for name in _COMPUTE), *_ORDER):
    setattr(Remote, f"__{_name}__", _ask_for(_name, plain_result=False))


class Peer:
    """One side of the pair of pipes. One question is open at a time; the answer may be preceded by questions."""

    def __init__(self, descriptors: tuple[int, int], *, strict: bool) -> None:
        """Pipes to read from and to write to; `strict` on the tests' side."""
        self._read, self._write = descriptors
        self.strict = strict
        self._handed: dict[int, Any] = {}
        self._errors: dict[tuple[str, str], type[BaseException]] = {}
        self.names: Callable[[list[str]], list[Any]] = list

    def ask(self, operation: str, *operands: Any) -> Any:
        """What the other side answers; what it raises is raised here. EOFError when it has gone."""
        codec.send(self._write, codec.dump(["ask", operation, list(operands)], self._encode))
        while True:
            kind, *rest = codec.load(codec.receive(self._read), self._decode)
            if kind == "answer":
                return rest[0]
            if kind == "raise":
                raise self._error(*rest)
            self._serve(*rest)

    def serve(self) -> None:
        """Answers until the other side has gone."""
        while True:
            try:
                _, *rest = codec.load(codec.receive(self._read), self._decode)
            except EOFError:
                return
            self._serve(*rest)

    def _serve(self, operation: str, operands: list[Any]) -> None:
        try:
            answer = codec.dump(["answer", self._do(operation, operands)], self._encode)
        except FOREIGN as error:
            answer = codec.dump(["raise", *_described(error, self.strict)])
        codec.send(self._write, answer)

    def _do(self, operation: str, operands: list[Any]) -> Any:
        if operation == "names" and not self.strict:
            return self.names(*operands)
        target = operands[0]
        if self.strict and not (self._handed.get(id(target)) is target and self._may(operation, target, operands)):
            raise TypeError(f"the tests do not offer {operation!r} of this object")
        if operation == "call":
            return self._call(target, operands[1], operands[2])
        if operation == "get":
            return getattr(target, operands[1])
        if operation == "set":
            return setattr(target, operands[1], operands[2])
        return _OPERATORS[operation](*operands)

    def _may(self, operation: str, target: Any, operands: list[Any]) -> bool:
        if operation in ("get", "set"):
            return type(target).__module__ == "tests" and not operands[1].startswith("_")
        return operation in ("call", "iter", "next", "len", "bool", "str", "repr", "hash", "eq", "getitem", *_ORDER)

    def _call(self, function: Any, arguments: list[Any], named: dict[str, Any]) -> tuple[Any, list[Any]]:
        watched = [a if type(a) in (list, dict, set) else None for a in arguments]
        before = [codec.dump(a, self._encode) for a in watched]
        result = function(*arguments, **named)
        after = [a if codec.dump(a, self._encode) != b else None for a, b in zip(watched, before, strict=True)]
        return result, after

    def _encode(self, value: Any) -> tuple[str, Any]:
        if type(value) is Remote:
            return "yours", value._at
        known = values.encode(value)
        if known is not None:
            return known
        if isinstance(value, type) and issubclass(value, BaseException):
            return "error", _lineage(value)
        self._handed[id(value)] = value  # held, so that the number stays this object's
        return "mine", id(value)

    def _decode(self, tag: str, payload: Any) -> Any:
        if tag == "mine":
            return Remote(self, int(payload))
        if tag == "yours":
            if payload not in self._handed:
                raise ValueError(f"nothing was handed over as {payload!r}")
            return self._handed[payload]
        return self._error_type(*payload) if tag == "error" else values.decode(tag, payload)

    def _error_type(self, name: str, module: str, parents: list[str]) -> type[BaseException]:
        """The built-in exception of that name, or one made to stand for the program's."""
        found = vars(builtins).get(name) if module == "builtins" else None
        if isinstance(found, type) and issubclass(found, Exception):
            return found
        key = (module, name)
        if key not in self._errors:
            builtin = [vars(builtins).get(parent) for parent in parents]
            base = next((b for b in builtin if isinstance(b, type) and issubclass(b, Exception)), Exception)
            self._errors[key] = type(name, (base,), {"__module__": module})
        return self._errors[key]

    def _error(self, lineage: list[Any], arguments: tuple[Any, ...], text: str) -> BaseException:
        kind = self._error_type(*lineage)
        error = kind.__new__(kind, *arguments)
        error.args = arguments
        error.add_note(str(text)[:4000])
        return error


def _lineage(kind: type[BaseException]) -> list[Any]:
    return [kind.__name__, kind.__module__, [parent.__name__ for parent in kind.__mro__[1:]]]


def _described(error: BaseException, strict: bool) -> list[Any]:
    try:
        codec.dump(list(error.args))
        arguments = error.args
    except ValueError:
        arguments = (str(error),)
    if strict:
        return [_lineage(type(error)), tuple(arguments), ""]  # a traceback would show the tests
    import traceback

    return [_lineage(type(error)), tuple(arguments), traceback.format_exc(limit=-6)]
