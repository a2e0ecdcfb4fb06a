"""Ways to damage a file: its bytes, the values of its JSON, the header and the numbers of its safetensors."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

__all__ = ["damaged_bytes", "damaged_text", "forged_json", "forged_lines", "forged_tensors", "forged_text"]

DUPLICATE, LITERAL = "\x01again\x01", "\x01literal {}\x01"
LITERALS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" + "0" * 400,
    "-" + "9" * 5000,
    "0.1e-400",
    "[" * 5000,
]
LITERALS += ["[" * 60 + "]" * 60, '{"a":' * 40 + "1" + "}" * 40, '"\\ud800"', '"\\u0000"', "1e308", "-0", "0.1"]


def damaged_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, moved, replaced or added."""
    if not raw:
        return rng.randbytes(rng.randrange(1, 20))
    kind = rng.randrange(10)
    start, end = sorted((rng.randrange(len(raw) + 1), min(len(raw), rng.randrange(len(raw) + 1))))
    if kind < 4:
        changed = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            changed[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 4:
        return raw[:start]
    if kind == 5:
        return rng.randbytes(rng.choice((1, 8, 100, len(raw))))
    if kind == 6:
        return raw[:start] + raw[end:]
    if kind == 7:
        return raw[:end] + raw[start:]
    if kind == 8:
        return raw[:start] + rng.randbytes(rng.randrange(1, 9)) + raw[start:]
    return rng.choice((b"", b"\n", b"null", b"[]", b"{}", b"\xff\xfe", raw + b"\n" + raw, b" " + raw))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[name], (*path, name))


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


def forged_json(text: str, rng: random.Random) -> str:
    """JSON with one value of another type or size, one name missing, doubled or added, or two values exchanged."""
    value = json.loads(text)
    places = list(_places(value))
    path = rng.choice(places)
    if not path:
        return rng.choice(("null", "[]", "{}", "3", '"text"', "true", f"[{text}]", f"{text}{text}"))
    holder, name = _at(value, path[:-1]), path[-1]
    kind = rng.randrange(12)
    old = holder[name]
    numbers = (-1, 0, 1, 2**31, 2**53, 2**63, 10**30, 0.5, 1e-300, -1e300)
    if kind == 0:
        del holder[name]
    elif kind == 1 and isinstance(holder, dict):
        holder[DUPLICATE] = rng.choice((old, None, 1, "text", [], {}))
    elif kind == 2:
        other = rng.choice([place for place in places if place])
        holder[name] = json.loads(json.dumps(_at(value, other)))
    elif kind == 3 and isinstance(old, str) and old:
        holder[name] = damaged_text(old, rng)
    elif kind == 4:
        holder[name] = rng.choice((None, True, False, "", "text", "\x1b[2J", "../..", "x" * 20_000, [], {}, [[]]))
    elif kind in {5, 6}:
        holder[name] = rng.choice(numbers)
    elif kind == 7:
        holder[name] = LITERAL.format(rng.randrange(len(LITERALS)))
    elif kind == 8 and isinstance(old, int | float):
        holder[name] = rng.choice((old + 1, -old, old * 2, str(old), bool(old), float(old) / 3))
    elif kind == 9:
        holder[name] = [old] if rng.random() < 0.5 else {"a": old}
    elif kind == 10 and isinstance(old, list) and old:
        holder[name] = rng.choice((old[:-1], old + old, old[::-1], old * 50))
    elif isinstance(holder, dict):
        holder[rng.choice(("", "a", "__class__", "crc32", "\x00", "x" * 500))] = rng.choice((old, None, [1]))
        if rng.random() < 0.5:
            holder[damaged_text(str(name), rng)] = holder.pop(name)
    said = json.dumps(value, indent=rng.choice((None, 1)))
    if kind == 1 and isinstance(name, str):
        said = said.replace(json.dumps(DUPLICATE), json.dumps(name))
    for number, literal in enumerate(LITERALS):
        said = said.replace(json.dumps(LITERAL.format(number)), literal)
    return said


def damaged_text(text: str, rng: random.Random) -> str:
    """A text with a character changed, doubled or left out."""
    at = rng.randrange(len(text)) if text else 0
    return text[:at] + rng.choice(("", "x", "/", "0", " ", '"', "é", text)) + text[at + rng.randrange(2) :]


def forged_text(text: str, rng: random.Random) -> str:
    """An expression with parts doubled, exchanged, nested or made huge."""
    parts = [
        "(",
        ")",
        ",",
        "=",
        "-",
        "~",
        "**",
        "inf",
        "nan",
        "None",
        "True",
        "1e999",
        "9" * 5000,
        "'a'",
        "[",
        "]",
        "{",
        "lam",
    ]
    parts += [
        "-" * 3000,
        "(" * 300,
        "1j",
        "b''",
        "...",
        "__import__",
        ".x",
        "lambda: 0",
        "\x00",
        "é",
        "\n",
        "f'{1}'",
        "*",
        "1_0",
    ]
    kind = rng.randrange(5)
    start, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    if kind == 0:
        return damaged_text(text, rng)
    if kind == 1:
        return text[:start] + rng.choice(parts) + text[end if rng.random() < 0.5 else start :]
    if kind == 2:
        return text[:end] + text[start:]
    if kind == 3:
        name = text.partition("(")[0]
        return f"{name}(" * rng.choice((1, 30, 500)) + text + ")" * rng.choice((1, 30, 500))
    return text.replace(rng.choice(text), rng.choice(parts))


def forged_lines(text: str, rng: random.Random) -> str:
    """A line of JSON changed, left out, doubled, or exchanged with another."""
    lines = text.splitlines(keepends=True)
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(other, lines[at])
    elif kind == 2:
        lines[at], lines[other] = lines[other], lines[at]
    else:
        lines[at] = forged_json(lines[at], rng).replace("\n", "") + "\n"
    return "".join(lines)


def forged_tensors(raw: bytes, rng: random.Random) -> bytes:
    """A file of safetensors with another header, also within the JSON that its header holds as text."""
    size = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + size].decode(), raw[8 + size :]
    words = json.loads(header).get("__metadata__", {})
    inner = [name for name, text in words.items() if text.startswith(("{", "["))]
    if inner and rng.random() < 0.5:
        found = json.loads(header)
        name = rng.choice(inner)
        found["__metadata__"][name] = forged_json(words[name], rng)
        header = json.dumps(found)
    else:
        header = forged_json(header, rng)
    content = header.encode("utf-8", "surrogatepass")
    size = rng.choice((len(content),) * 8 + (0, len(content) + 1, 2**40, 2**63))
    return size.to_bytes(8, "little") + content + data
