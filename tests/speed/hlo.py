"""What a program compiled for a TPU or a GPU says about itself, read from its text (`compiled.as_text()`).

On a TPU `cost_analysis()` counts a copy from memory to the chip's own buffer (VMEM, on v4 also CMEM) as if it went
through memory twice, and does not count what a loop repeats; for a GPU it is not implemented. Here an array is in
memory (HBM) unless its layout names another memory space, as in `f32[8,128]{1,0:T(8,128)S(1)}`. Sizes are those of the
shapes, without the padding to tiles.
"""

import collections
import math
import re
from typing import NamedTuple

WIDTH = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
ARRAY = re.compile(rf"\b({'|'.join(WIDTH)})\[([0-9,]*)\](?:{{([^}}]*)}})?")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = (.*)")
CALL = re.compile(r" ([a-z][\w-]*)\(([^)]*)\)")
ALL_REDUCES = ("all-reduce", "all-reduce-start")
COLLECTIVES = (*ALL_REDUCES, "all-gather", "all-gather-start", "reduce-scatter", "all-to-all", "collective-permute")
# What only gives another name to an array, or stands for one that is already there.
NAMES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "slice-done", "while")


class Array(NamedTuple):
    dtype: str
    nbytes: int
    in_memory: bool  # HBM, not a buffer on the chip


class Instruction(NamedTuple):
    computation: str
    opcode: str
    arrays: list[Array]  # what it results in
    operands: list[str]
    text: str


class Program:
    """The instructions of a compiled program."""

    def __init__(self, text: str):
        self.instructions: dict[str, Instruction] = {}
        self.entry = computation = ""
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith(" "):
                computation = line.split("%")[1].split(" ")[0]
                if line.startswith("ENTRY"):
                    self.entry = computation
            elif match := INSTRUCTION.match(line):
                name, rest = match.groups()
                end = _end_of_shape(rest)
                opcode, operands = CALL.match(rest, end).groups()  # type: ignore[union-attr]
                operands = re.findall(r"%([\w.-]+)", operands)
                self.instructions[name] = Instruction(computation, opcode, _arrays(rest[:end]), operands, rest)

    def memory_traffic(self) -> int:
        """Bytes that the entry computation reads from memory and writes to it. It must have no loops."""
        return sum(self._read(i) + sum(a.nbytes for a in _written(i)) for i in self._entry())

    def loop_body(self) -> str:
        """The computation that the one loop of the entry computation repeats."""
        (loop,) = (i for i in self._entry() if i.opcode == "while")
        return re.search(r"body=%([\w.-]+)", loop.text)[1]  # type: ignore[index]

    def passes(self, size: int, computation: str, scope: str) -> int:
        """How often kernels outside the named scope `scope` read or write an array of `size` bytes, copies included."""
        kernels = [i for i in self._kernels(computation) if not re.search(rf'op_name="[^"]*{scope}', i.text)]
        read = [a for i in kernels for o in i.operands for a in self.instructions[o].arrays]
        written = [a for i in kernels for a in i.arrays]
        return sum(a.nbytes == size for a in read + written)

    def kernels(self, computation: str) -> int:
        """How many kernels a computation starts on a GPU: fusions, copies, and calls of libraries."""
        return len(self._kernels(computation))

    def copies(self, computation: str) -> dict[str, int]:
        """The arrays that a computation copies as they are, as in {"f32[3,3,512,512]": 7}."""
        copies = [i for i in self._kernels(computation) if i.opcode == "copy"]
        return dict(collections.Counter(re.match(r"[^{ ]*", i.text)[0] for i in copies))

    def collectives(self) -> list[dict]:
        """Each collective: its kind, the bytes that a device puts in, and whether it is in the loop."""
        return [
            {
                "kind": i.opcode.removesuffix("-start"),
                "bytes": sum(a.nbytes for o in i.operands for a in self.instructions[o].arrays),
                "in_loop": i.computation != self.entry,
            }
            for i in self.instructions.values()
            if i.opcode in COLLECTIVES
        ]

    def convolutions(self) -> dict[tuple[str, ...], int]:
        """How many convolutions and products there are of each kind: (layer, pass, dtypes in, dtype out, precision).

        Products of matrices are convolutions too for a TPU. Dtypes are those of the arrays that it is handed.
        """
        kinds: collections.Counter = collections.Counter()
        for i in self.instructions.values():
            if i.opcode == "convolution":
                name = re.search(r'op_name="([^"]*)"', i.text)[1]  # type: ignore[index]
                precision = re.search(r"operand_precision=\{(\w+)", i.text)
                kinds[
                    "dense" if "Dense" in name else "convolution",
                    "backward" if "transpose(" in name else "forward",
                    " x ".join(sorted(self.instructions[o].arrays[0].dtype for o in i.operands)),
                    i.arrays[0].dtype,
                    precision[1] if precision else "default",
                ] += 1
        return dict(kinds)

    def _entry(self) -> list[Instruction]:
        return [i for i in self.instructions.values() if i.computation == self.entry]

    def _kernels(self, computation: str) -> list[Instruction]:
        others = (*NAMES, *COLLECTIVES, "all-reduce-done", "all-gather-done")
        return [i for i in self.instructions.values() if i.computation == computation and i.opcode not in others]

    def _read(self, i: Instruction) -> int:
        if i.opcode in NAMES:
            return 0
        if i.opcode == "slice-start":  # of what it is handed it reads the slice
            return i.arrays[1].nbytes if i.arrays[0].in_memory else 0
        return sum(a.nbytes for o in i.operands for a in self.instructions[o].arrays if a.in_memory)


def _end_of_shape(rest: str) -> int:
    """Where the shape ends with which an instruction begins: `f32[8]{0} add(...)` or `(f32[8]{0}, ...) fusion(...)`."""
    if not rest.startswith("("):
        return rest.index(" ")
    depth = 0
    for end, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return end + 1
    raise ValueError(f"no end of the shape in {rest!r}")


def _arrays(shape: str) -> list[Array]:
    return [
        Array(
            dtype,
            WIDTH[dtype] * math.prod(int(n) for n in sizes.split(",") if n),
            not re.search(r"S\([1-9]", layout or ""),
        )
        for dtype, sizes, layout in ARRAY.findall(shape)
    ]


def _written(i: Instruction) -> list[Array]:
    """The arrays in memory that an instruction writes."""
    if i.opcode in NAMES or "Bitcast" in i.text.split("backend_config")[0]:
        return []
    results = {"copy-start": i.arrays[:1], "slice-start": i.arrays[1:2]}  # (to, from, ...) and ((from), to, ...)
    return [a for a in results.get(i.opcode, i.arrays) if a.in_memory]
