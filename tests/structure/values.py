"""What names hold, as far as that is written down in a function or in its module."""

import ast

FIELD = "status"
# Builtins that keep the names that they are given.
KEEPERS = frozenset({"dict", "list", "tuple", "set", "frozenset", "sorted"})
DEEPEST = 8


def is_field(node: ast.AST | None, field: str = FIELD) -> bool:
    return isinstance(node, ast.Constant) and node.value == field


class Values:
    def __init__(self, nodes: list[ast.AST], module: ast.Module) -> None:
        self.assigned = _assignments(nodes)
        self.of_module = _assignments([node for statement in module.body for node in _outside_functions(statement)])

    def held_by(self, name: str) -> list[ast.expr]:
        """Everything that is assigned to, or put into, a name; nothing where it comes from elsewhere."""
        return self.assigned.get(name) or self.of_module.get(name, [])

    def meant(self, node: ast.expr) -> ast.expr:
        """The function or row behind a name that was given to it, or behind ``getattr`` with a name written out."""
        match node:
            case ast.Name(id=name) if len(held := self.held_by(name)) == 1 and held[0] is not node:
                return held[0] if isinstance(held[0], (ast.Attribute, ast.Call)) else node
            case ast.Call(func=ast.Name(id="getattr"), args=[holder, ast.Constant(value=str(name)), *_]):
                return ast.Attribute(value=holder, attr=name, ctx=ast.Load())
        return node

    def names(self, node: ast.expr, field: str = FIELD, depth: int = 0) -> bool:
        """Whether a list, set, tuple or dict (by its keys), or a name for one, has the field in it."""
        if is_field(node, field):
            return True
        return depth < DEEPEST and any(self.names(part, field, depth + 1) for part in self._parts(node) or [])

    def knows(self, node: ast.expr, depth: int = 0) -> bool:
        """Whether it is written down here which names it has in it."""
        if isinstance(node, ast.Constant):
            return True
        parts = self._parts(node)
        return parts is not None and depth < DEEPEST and all(self.knows(part, depth + 1) for part in parts)

    def _parts(self, node: ast.expr) -> list[ast.expr] | None:
        """Of what it is made; None where that is not written down."""
        match node:
            case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts):
                return parts
            case ast.Starred(value=inner) | ast.NamedExpr(value=inner):
                return [inner]
            case ast.Dict(keys=keys, values=values):
                return [value if key is None else key for key, value in zip(keys, values, strict=True)]
            case ast.BinOp(left=one, right=other) | ast.IfExp(body=one, orelse=other):
                return [one, other]
            case ast.BoolOp(values=parts):
                return parts
            case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in KEEPERS:
                named: list[ast.expr] = [ast.Constant(keyword.arg) for keyword in keywords if keyword.arg]
                return [*args, *named, *(keyword.value for keyword in keywords if keyword.arg is None)]
            case ast.Name(id=name):
                return self.held_by(name) or None
        return None


def _outside_functions(statement: ast.stmt) -> list[ast.AST]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return []
    return list(ast.walk(statement))


def _assignments(nodes: list[ast.AST]) -> dict[str, list[ast.expr]]:
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        for name, value in _held(node):
            found.setdefault(name, []).append(value)
    return found


def _held(node: ast.AST) -> list[tuple[str, ast.expr]]:
    match node:
        case ast.Assign(targets=targets, value=value):
            return [pair for target in targets for pair in _put(target, value)]
        case ast.AnnAssign(target=target, value=ast.expr() as value):
            return _put(target, value)
        case ast.NamedExpr(target=target, value=value) | ast.AugAssign(target=target, value=value):
            return _put(target, value)
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=args, keywords=keywords):
            if method in {"append", "add", "insert", "setdefault"}:
                return [(name, argument) for argument in (args[-1:] if method == "insert" else args[:1])]
            if method in {"update", "extend"}:
                given: list[ast.expr] = [ast.Constant(each.arg) if each.arg else each.value for each in keywords]
                return [(name, argument) for argument in [*args, *given]]
    return []


def _put(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    match target:
        case ast.Name(id=name):
            return [(name, value)]
        case ast.Subscript(value=ast.Name(id=name), slice=key):
            return [(name, key)]
    return []
