"""Messages that nobody would send: any part of a good one cut, doubled, swapped, overflowing, of another type.

Only what Flower can carry: numbers of 64 bits, texts, bytes, lists of one kind, arrays.
"""

import copy
import json
import math
import random
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

INTS = (0, 1, -1, 2, 255, 10**6, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1e-320, 1e308, -1.0, 0.5, math.inf, -math.inf, math.nan)
TEXTS = (
    "",
    "\0",
    "null",
    "NaN",
    "1e999",
    "9" * 5000,
    "-1",
    "true",
    "[]",
    "{}",
    '{"a": {}}',
    "[" * 2000,
    '{"a":' * 2000,
    '"\\ud800"',
    "../../../etc/passwd",
    "sub-northsecret000",
    "\u202e\x1b[2J",
    "é" * 300,
    "x" * 70000,
    "run\nrun",
)
KEYS = ("", "plan", "query", "update", "delta", "weights", "inventory", "refusal", "signed", "ledger", "site", "more")


class Mutator:
    """All from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    # --- plain values

    def json(self, value: Any, deep: int = 0) -> Any:
        """A value of JSON with something changed somewhere in it."""
        dice = self.dice
        if isinstance(value, dict) and value and dice.random() < 0.85:
            found = dict(value)
            key = dice.choice(sorted(found))
            how = dice.random()
            if how < 0.6:
                found[key] = self.json(found[key], deep + 1)
            elif how < 0.75:
                del found[key]
            elif how < 0.9:
                found[dice.choice([*KEYS, self.text(key)])] = found[key]
            else:
                found[key] = found[dice.choice(sorted(found))]
            return found
        if isinstance(value, list) and value and dice.random() < 0.85:
            listed = list(value)
            at = dice.randrange(len(listed))
            how = dice.random()
            if how < 0.6:
                listed[at] = self.json(listed[at], deep + 1)
            elif how < 0.8:
                del listed[at]
            else:
                listed += listed[at:] * dice.choice((1, 1, 50))
            return listed
        if isinstance(value, str) and dice.random() < 0.6:
            return self.text(value)
        if type(value) in (int, float) and dice.random() < 0.6:
            return dice.choice([*INTS, *FLOATS, -value, value + 1, 2**64, 10**400, str(value)])
        return dice.choice([None, True, False, 0, -1, 2**64, 1e308, math.nan, "", [], {}, [[]], dice.choice(TEXTS)])

    def text(self, value: str) -> str:
        """Text, with the JSON in it changed where there is some."""
        dice = self.dice
        if value[:1] in ("{", "[") and dice.random() < 0.7:
            try:
                return json.dumps(self.json(json.loads(value)))
            except (ValueError, RecursionError):
                pass
        how = dice.random()
        if not value or how < 0.2:
            return dice.choice(TEXTS)
        at, end = sorted(dice.randrange(len(value) + 1) for _ in range(2))
        if how < 0.4:
            return value[:at] + value[end:]
        if how < 0.6:
            return value[:end] + value[at:]
        if how < 0.8:
            return value[:at] + chr(dice.choice((0, 9, 10, 32, 34, 92, 127, 233, 0x202E, 0x1F600))) + value[at:]
        return value[:at] + dice.choice(TEXTS)[:200] + value[at:]

    def bytes(self, value: bytes) -> bytes:
        dice = self.dice
        how = dice.random()
        if how < 0.1 or not value:
            return dice.randbytes(dice.choice((0, 1, 8, 64, 5000)))
        if how < 0.35:
            try:
                return self.text(value.decode()).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                pass
        changed = bytearray(value)
        at, end = sorted(dice.randrange(len(changed) + 1) for _ in range(2))
        if how < 0.7:
            for _ in range(dice.choice((1, 1, 1, 8))):
                changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        elif how < 0.8:
            del changed[at:end]
        elif how < 0.9:
            changed[at:at] = dice.randbytes(dice.choice((1, 8, 300)))
        else:
            changed[: min(8, len(changed))] = dice.choice((b"\xff" * 8, bytes(8), b"\x01" + bytes(7)))
        return bytes(changed)

    def value(self, value: Any) -> Any:
        """Of a field: the same type changed, or another type."""
        dice = self.dice
        if dice.random() < 0.2:
            others = (b"", dice.randbytes(40), True, [], [1, 2], [0.5], ["a", ""], [b"x"], [256, -1], [2**40])
            return dice.choice((dice.choice(INTS), dice.choice(FLOATS), dice.choice(TEXTS), *others))
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes):
            return self.bytes(value)
        if isinstance(value, list):
            return value[: dice.randrange(len(value) + 1)] * dice.choice((1, 1, 3, 500))
        if isinstance(value, int):
            return dice.choice([*INTS, -value])
        return dice.choice(FLOATS)

    # --- messages

    def content(self, good: RecordDict) -> RecordDict:
        """A message with one to three things changed in it; now and then one that is made up."""
        found = copy.deepcopy(good)
        if self.dice.random() < 0.03:
            return self.made_up()
        for _ in range(self.dice.choice((1, 1, 1, 2, 3))):
            self._change(found)
        return found

    def made_up(self) -> RecordDict:
        found = RecordDict()
        for _ in range(self.dice.randrange(4)):
            record = ConfigRecord({self.dice.choice(KEYS): self.value("") for _ in range(self.dice.randrange(4))})
            found[self.dice.choice(KEYS)] = self.dice.choice([record, MetricRecord({"x": 1}), self._arrays()])
        return found

    def _change(self, content: RecordDict) -> None:
        dice = self.dice
        if not content or dice.random() < 0.05:
            content[dice.choice(KEYS)] = dice.choice([ConfigRecord({"site": "east"}), MetricRecord({"x": 1.5})])
            return
        name = dice.choice(sorted(content))
        record, how = content[name], dice.random()
        if how < 0.06:
            del content[name]
        elif how < 0.1:
            content[dice.choice(KEYS)] = record
        elif how < 0.13:
            content[name] = dice.choice([ConfigRecord(), MetricRecord({"x": 1}), self._arrays()])
        elif isinstance(record, ArrayRecord):
            self._change_arrays(record)
        elif isinstance(record, ConfigRecord) and record:
            self._change_record(record)

    def _change_record(self, record: ConfigRecord) -> None:
        key, how = self.dice.choice(sorted(record)), self.dice.random()
        if how < 0.1:
            del record[key]
        elif how < 0.2:
            record[self.dice.choice(KEYS)] = record[key]
        else:
            record[key] = self.value(record[key])

    def _change_arrays(self, record: ArrayRecord) -> None:
        dice = self.dice
        if not record or dice.random() < 0.1:
            record[dice.choice(KEYS)] = self._array()
            return
        name = dice.choice(sorted(record))
        array = record[name]
        values = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data}
        which = dice.choice(("data", "data", "data", "data", "dtype", "shape", "stype"))
        if which == "data":
            end = 8 + int.from_bytes(array.data[:8], "little")
            if dice.random() < 0.6 and end < len(array.data):  # the list of forms
                forms = self.text(array.data[8:end].decode("utf-8", "replace")).encode("utf-8", "surrogatepass")
                length = len(forms) if dice.random() < 0.8 else dice.choice((0, 2**40, 2**63, len(forms) + 3))
                values["data"] = length.to_bytes(8, "little") + forms + array.data[end:]
            else:
                values["data"] = self.bytes(array.data)
        elif which == "shape":
            values["shape"] = dice.choice([(), (0,), (2**31, 2**31), (1, len(array.data)), (-1,)])
        else:
            values[which] = self.text(str(values[which]))[:100]
        record[name] = Array(**values)

    def _array(self) -> Array:
        data = self.dice.randbytes(self.dice.choice((0, 8, 40)))
        return Array(dtype="uint8", shape=(len(data),), stype="lacuna.tensors", data=data)

    def _arrays(self) -> ArrayRecord:
        return ArrayRecord({self.dice.choice(("tensors", "x")): self._array()})
