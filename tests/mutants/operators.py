"""What a mutant is: one small change of one place of a source file, such as a tired author makes.

Left alone: annotations, docstrings, imports, what is logged, and the words of errors (tests of their own read those).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_SYMBOLS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip
_COMPUTED: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(), ast.Sub: ast.Add(), ast.Mult: ast.Div(), ast.Div: ast.Mult(), ast.FloorDiv: ast.Mod(),
    ast.Mod: ast.FloorDiv(), ast.BitAnd: ast.BitOr(), ast.BitOr: ast.BitAnd(), ast.LShift: ast.RShift(),
    ast.RShift: ast.LShift(), ast.Pow: ast.Mult(),
}  # fmt: skip
_SWAPPED = {"min": "max", "max": "min", "any": "all", "all": "any"}
_CHAINED = {  # x.where(y) becomes x
    "where", "order_by", "desc", "limit", "offset", "distinct", "having", "group_by", "strip", "rstrip", "lstrip",
    "lower", "upper", "casefold", "resolve", "astype", "copy", "values", "on_conflict_do_nothing",
}  # fmt: skip
_ORDERLESS = {"where", "select", "and_", "or_", "min", "max", "join"}  # f(a, b) is f(b, a)
_LOGS = {"debug", "info", "warning", "error", "exception", "critical"}
_KEPT_DECORATORS = {
    "property",
    "staticmethod",
    "classmethod",
    "dataclass",
    "contextmanager",
    "overload",
    "setter",
    "abstractmethod",
}


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old` at `start` of the file's text becomes `new`."""

    path: str
    line: int
    lines_run: tuple[int, int]  # first and last of the statement (of its head, where it has a body)
    start: int
    old: str
    new: str
    function: str  # the innermost function's whole text, "" at a module's level
    kind: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.start + len(self.old) :]

    def lines(self, text: str) -> tuple[str, str]:
        """The lines it touches, before and after: by them it is known, wherever they stand."""
        first = text.rfind("\n", 0, self.start) + 1
        last = text.find("\n", self.start + len(self.old))
        was = text[first : last if last >= 0 else len(text)]
        now = was[: self.start - first] + self.new + was[self.start - first + len(self.old) :]
        return _one_line(was), _one_line(now)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def mutants(path: str, text: str) -> list[Mutant]:
    """All of a file, in its order."""
    found = list(_Finder(path, text).run())
    return sorted(found, key=lambda m: (m.start, m.kind, m.new))


class _Finder:
    def __init__(self, path: str, text: str) -> None:
        self._path, self._text = path, text
        self._starts = [0]
        for line in text.encode().splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def run(self) -> Iterator[Mutant]:
        yield from self._walk(ast.parse(self._text), "", (1, 1))

    def _span(self, node: ast.AST) -> tuple[int, int]:
        """In characters; ast counts the bytes of UTF-8."""
        at: list[int] = []
        for line, column in ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)):  # type: ignore[attr-defined]
            at.append(len(self._text.encode()[: self._starts[line - 1] + column].decode()))
        return at[0], at[1]

    def _walk(self, node: ast.AST, function: str, run: tuple[int, int]) -> Iterator[Mutant]:
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            run = node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef):
            function = ast.get_source_segment(self._text, node) or ""
        for kind, part, change in _changes(node):
            start, end = self._span(part)
            new = change if isinstance(change, str) else ast.unparse(change)
            if isinstance(part, ast.expr) and not isinstance(part, ast.Constant | ast.Name | ast.Tuple):
                new = f"({new})"  # it may stand in an expression that binds closer, or go on over lines
            yield Mutant(self._path, part.lineno, run, start, self._text[start:end], new, function, kind)  # type: ignore[attr-defined]
        for child in _inside(node):
            yield from self._walk(child, function, run)


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The children that may be changed."""
    for field, value in ast.iter_fields(node):
        if field in {
            "annotation",
            "returns",
            "decorator_list",
            "type_params",
            "keywords" * isinstance(node, ast.ClassDef),
        }:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _left_alone(child):
                yield child


def _left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_log(node.value)
    if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
        named = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        return isinstance(named, ast.Name) and (named.id in {"T", "P", "__all__"} or _is_type(node.value))
    return isinstance(node, ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Raise)


def _is_type(value: ast.expr) -> bool:
    """An alias such as Record = tuple[Any, ...], or a TypeVar."""
    called = (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in {"TypeVar", "NewType"}
    )
    return called or (isinstance(value, ast.Subscript) and isinstance(value.value, ast.Name)
                      and value.value.id in {"tuple", "dict", "list", "set", "Callable", "Mapping"})  # fmt: skip


def _is_log(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _LOGS
        and isinstance(node.func.value, ast.Name)
        and "log" in node.func.value.id.lower()
    )


Change = tuple[str, ast.AST, "ast.AST | str"]


def _changes(node: ast.AST) -> Iterator[Change]:
    """What may happen to this node: the kind, the part that is replaced, and what takes its place."""
    if isinstance(node, ast.stmt):
        yield from _of_statement(node)
    elif isinstance(node, ast.expr):
        yield from _of_expression(node)
    if isinstance(node, ast.stmt | ast.ExceptHandler | ast.Try):
        for statement in _bodies(node):
            if isinstance(statement, ast.Raise):
                yield "raise removed", statement, "pass"


def _bodies(node: ast.AST) -> Iterator[ast.stmt]:
    for name in ("body", "orelse", "finalbody"):
        yield from (s for s in getattr(node, name, []) if isinstance(s, ast.stmt))


def _of_statement(node: ast.stmt) -> Iterator[Change]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            if not isinstance(test, ast.Compare | ast.UnaryOp) and not _is_type_checking(test):
                yield "condition negated", test, f"not ({ast.unparse(test)})"
        case ast.Return(value=ast.Constant(value=False)):
            pass  # None would be as false: that it is true is a mutant of the constant
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield "None returned", node, "return None"
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()):
            yield "call removed", node, "pass"
        case ast.AugAssign(op=op) if type(op) in _COMPUTED:
            yield "not updated", node, "pass"
            changed = ast.AugAssign(target=node.target, op=_COMPUTED[type(op)], value=node.value)
            yield "updated the other way", node, changed
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "not assigned", node, "pass"
        case ast.Continue():
            yield "break for continue", node, "break"
        case ast.Break():
            yield "continue for break", node, "continue"
        case ast.FunctionDef(decorator_list=decorators):
            for d in decorators:
                if ast.unparse(d).split("(")[0].rpartition(".")[2] not in _KEPT_DECORATORS:
                    yield "decorator removed", d, "(lambda x: x)"


def _of_expression(node: ast.expr) -> Iterator[Change]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield "comparison", node, f"{_inner(left)} {_COMPARED[type(op)]} {_inner(right)}"
        case ast.Compare(left=left, ops=ops, comparators=others):
            for i in range(len(ops)):
                words = [_inner(left)]
                for j, (op, other) in enumerate(zip(ops, others, strict=True)):
                    words += [_COMPARED[type(op)] if i == j else _SYMBOLS[type(op)], _inner(other)]
                yield "comparison", node, " ".join(words)
        case ast.BoolOp(op=op, values=values):
            yield "and/or", node, ast.BoolOp(op=ast.Or() if isinstance(op, ast.And) else ast.And(), values=values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", node, f"bool({ast.unparse(operand)})"
        case ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.UnaryOp):
            yield "condition negated", test, f"not ({ast.unparse(test)})"
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _COMPUTED and not (_text(left) or _text(right)):
            yield "arithmetic", node, ast.BinOp(left=left, op=_COMPUTED[type(op)], right=right)
        case ast.Constant(value=bool() as value):
            yield "constant", node, str(not value)
        case ast.Constant(value=int() | float() as value):
            yield "constant", node, repr(value + 1)
        case ast.Constant(value=str() as value) if value:
            yield "text", node, repr(value + "X")
        case ast.Constant(value=bytes() as value) if value:
            yield "text", node, repr(value + b"X")
        case ast.Call():
            yield from _of_call(node)
        case ast.Tuple(elts=elements) | ast.Set(elts=elements) | ast.List(elts=elements):
            if len(elements) > 1 and isinstance(node.ctx if not isinstance(node, ast.Set) else ast.Load(), ast.Load) \
                    and all(isinstance(e, ast.Constant | ast.Attribute) for e in elements):  # fmt: skip
                for i in range(len(elements)):
                    rest = [*elements[:i], *elements[i + 1 :]]
                    short = ast.Set(elts=rest) if isinstance(node, ast.Set) else type(node)(elts=rest, ctx=ast.Load())
                    yield "element removed", node, short
        case ast.Dict(keys=keys, values=values) if len(keys) > 1 and all(
            isinstance(v, ast.Constant | ast.Attribute) for v in values
        ):
            for i in range(len(keys)):
                yield (
                    "element removed",
                    node,
                    ast.Dict(keys=[*keys[:i], *keys[i + 1 :]], values=[*values[:i], *values[i + 1 :]]),
                )


def _of_call(node: ast.Call) -> Iterator[Change]:
    if isinstance(node.func, ast.Name) and node.func.id in _SWAPPED:
        name = node.func
        yield "function swapped", name, _SWAPPED[name.id]
    if isinstance(node.func, ast.Attribute) and node.func.attr in _CHAINED:
        yield "link of a chain removed", node, node.func.value
    orderless = ast.unparse(node.func).rpartition(".")[2] in _ORDERLESS
    two = node.args[:2]
    if len({ast.dump(a) for a in two}) > 1 and not orderless and not any(isinstance(a, ast.Starred) for a in two):
        swapped = ast.Call(func=node.func, args=[node.args[1], node.args[0], *node.args[2:]], keywords=node.keywords)
        yield "arguments swapped", node, swapped
    for i in range(len(node.keywords)):
        fewer = ast.Call(func=node.func, args=node.args, keywords=[*node.keywords[:i], *node.keywords[i + 1 :]])
        yield "argument removed", node, fewer


def _inner(node: ast.expr) -> str:
    return f"({ast.unparse(node)})"


def _text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_type_checking(node: ast.expr) -> bool:
    return ast.unparse(node).endswith("TYPE_CHECKING")
