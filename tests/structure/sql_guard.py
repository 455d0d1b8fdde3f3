"""Finds SQL that sets a status: an UPDATE, an upsert, or a trigger that writes into its row."""

import ast
import re

from tests.structure.values import FIELD

# What an f-string, a concatenation or a template fills in.
FILLED_IN = r"(?:\{\w*\}|%s|%\(\w+\)s)"
COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
LITERAL = re.compile(r"'(?:[^']|'')*'")
DISTINCT_FROM = re.compile(r"\bIS\s+(?:NOT\s+)?DISTINCT\s+FROM\b", re.IGNORECASE)
# The assignments of an UPDATE: between SET and what may follow them.
ASSIGNMENTS = re.compile(r"\bSET\b(.*?)(?=\b(?:WHERE|FROM|RETURNING)\b|;|\Z)", re.IGNORECASE | re.DOTALL)
UPDATE = re.compile(r"\bUPDATE\b.*?\bSET\b", re.IGNORECASE | re.DOTALL)
COLUMN = re.compile(rf'(?:\A|,)\s*(?:"?[A-Za-z_]\w*"?\s*\.\s*)*"?{FIELD}"?\s*=(?!=)', re.IGNORECASE)
COLUMN_FILLED_IN = re.compile(rf'(?:\A|,)\s*"?{FILLED_IN}"?\s*(?:=(?!=)|,|\Z)', re.IGNORECASE)
COLUMN_LIST = re.compile(r"(?:\bSET|,)\s*(?:ROW\s*)?\(([^()]*)\)\s*=(?!=)", re.IGNORECASE)
IN_TRIGGER = re.compile(
    rf'\bNEW\s*\.\s*"?{FIELD}"?\s*:=|(?:\A|;|\b(?:BEGIN|THEN|ELSE|LOOP|INTO|STRICT)\b)\s*NEW\s*\.\s*"?{FIELD}"?\s*[=;]',
    re.IGNORECASE,
)
SETS = "SQL that sets a status"
UNCHECKED = "SQL that sets columns that cannot be checked"


def check(node: ast.expr) -> str:
    """What is wrong with a text, if it is SQL and if anything is."""
    text = COMMENT.sub(" ", _text(node))
    # With its literals too: SQL that a function of PostgreSQL executes is one.
    readings = [text, LITERAL.sub(" ? ", text)]
    if any(map(_sets_field, readings)):
        return SETS
    return UNCHECKED if any(map(_sets_what_is_filled_in, readings)) else ""


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=bytes(text)):
            return text.decode(errors="replace")
        case ast.JoinedStr(values=parts):
            return "".join(map(_text, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "{}"


def _sets_field(text: str) -> bool:
    if IN_TRIGGER.search(text):
        return True
    listed = [name for match in COLUMN_LIST.finditer(text) for name in re.findall(r"\w+", match[1].lower())]
    return FIELD in listed or any(COLUMN.search(part) for part in _assignments(text))


def _sets_what_is_filled_in(text: str) -> bool:
    if not UPDATE.search(text):
        return False
    listed = any(re.search(FILLED_IN, match[1]) for match in COLUMN_LIST.finditer(text))
    return listed or any(COLUMN_FILLED_IN.search(part) for part in _assignments(text))


def _assignments(text: str) -> list[str]:
    plain = _without_parentheses(DISTINCT_FROM.sub(" <> ", text))
    return [match[1] for match in ASSIGNMENTS.finditer(plain)]


def _without_parentheses(text: str) -> str:
    """Subqueries and calls blanked, so that their WHERE and their commas are not taken for the statement's."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"\([^()]*\)", " ? ", text)
    return text
