"""JSON schemas at random, and whether a value follows one: as far as these schemas go, by the specification's own words."""

from __future__ import annotations

import math
import re
from random import Random
from typing import Any

Schema = dict[str, Any]
LETTERS = ["a", "b", "city", "days_2", "größe", "x y"]
WORDS = ["red", "green", "", "</parameter>", 'say "hi"', "a\nb", "7", "null"]


def random_schema(chance: Random, depth: int = 2) -> Schema:
    """An object's, as strict clients ask for: closed, with properties that may be left out."""
    return {
        "$defs": {"unit": {"enum": ["C", "F"]}, "list": {"type": "array", "items": {"$ref": "#/$defs/unit"}}}
    } | _object(chance, depth)


def _object(chance: Random, depth: int) -> Schema:
    names = chance.sample(LETTERS[:4], chance.randint(0, 3))
    return {
        "type": "object",
        "properties": {name: _any(chance, depth - 1) for name in names},
        "required": [name for name in names if chance.random() < 0.6],
        "additionalProperties": False,
    }


def _any(chance: Random, depth: int) -> Schema:
    kinds = [_string, _string, _whole, _number, _plain, _enum, _reference]
    if depth > 0:
        kinds += [_array, _object, _union]
    return chance.choice(kinds)(chance, depth)


def _string(chance: Random, depth: int) -> Schema:
    least = chance.randint(0, 3)
    return chance.choice(
        [
            {"type": "string"},
            {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 4)},
        ]
    )


def _whole(chance: Random, depth: int) -> Schema:
    least = chance.randint(-50, 50)
    return {"type": "integer", "minimum": least, "maximum": least + chance.randint(0, 200)}


def _number(chance: Random, depth: int) -> Schema:
    return (
        {"type": "number", "minimum": -1.5, "exclusiveMaximum": 10}
        if chance.random() < 0.5
        else {"type": "number"}
    )


def _plain(chance: Random, depth: int) -> Schema:
    return {"type": chance.choice(["boolean", "null", "integer"])}


def _enum(chance: Random, depth: int) -> Schema:
    return (
        {"type": "string", "enum": chance.sample(WORDS[:3], 2)}
        if chance.random() < 0.7
        else {"const": chance.choice([7, None, "x"])}
    )


def _reference(chance: Random, depth: int) -> Schema:
    return {"$ref": chance.choice(["#/$defs/unit", "#/$defs/list"])}


def _array(chance: Random, depth: int) -> Schema:
    least = chance.randint(0, 2)
    return {
        "type": "array",
        "items": _any(chance, depth - 1),
        "minItems": least,
        "maxItems": least + chance.randint(0, 2),
    }


def _union(chance: Random, depth: int) -> Schema:
    return chance.choice(
        [
            {"type": ["string", "null"]},
            {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
        ]
    )


def follows(value: Any, schema: Any, root: Schema | None = None) -> bool:
    """Whether `value` is what `schema` allows."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not follows(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    if "anyOf" in schema and not any(follows(value, choice, root) for choice in schema["anyOf"]):
        return False
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not _same(value, schema["const"]):
        return False
    types = schema.get("type", [])
    if types and not any(_is(value, kind) for kind in ([types] if isinstance(types, str) else types)):
        return False
    if isinstance(value, str):
        return _string_follows(value, schema)
    if isinstance(value, list):
        in_number = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)
        return in_number and all(follows(one, schema.get("items", True), root) for one in value)
    if isinstance(value, dict):
        return _object_follows(value, schema, root)
    return _is(value, "number") is False or (
        schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
        and value < schema.get("exclusiveMaximum", math.inf)
    )


def _string_follows(value: str, schema: Schema) -> bool:
    in_length = schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)
    return in_length and re.search(schema.get("pattern", ""), value) is not None


def _object_follows(value: dict[str, Any], schema: Schema, root: Schema) -> bool:
    known = schema.get("properties", {})
    return all(name in value for name in schema.get("required", ())) and all(
        follows(one, known.get(name, schema.get("additionalProperties", True)), root)
        for name, one in value.items()
    )


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    kinds = {
        "integer": int,
        "number": (int, float),
        "string": str,
        "null": type(None),
        "array": list,
        "object": dict,
    }
    return kind in kinds and isinstance(value, kinds[kind])


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other
