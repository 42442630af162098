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
# As in `%name = f32[8]{0} add(%one, %other)` or `ROOT %name = (f32[8]{0}, ...) fusion(...)`.
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%(\S+) = ((.*?) ([a-z][\w-]*)\(([^)]*)\).*)")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
STARTED, DONE = ("all-reduce-start", "all-gather-start"), ("all-reduce-done", "all-gather-done")
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
    """The instructions of a compiled program, by name."""

    def __init__(self, text: str):
        self.instructions: dict[str, Instruction] = {}
        self.entry = computation = ""
        for line in text.splitlines():
            if line.endswith("{") and not line.startswith(" "):
                computation = line.split("%")[1].split(" ")[0]
                self.entry = computation if line.startswith("ENTRY") else self.entry
            elif match := INSTRUCTION.match(line):
                name, text, shape, opcode, operands = match.groups()
                operands = re.findall(r"%([\w.-]+)", operands)
                self.instructions[name] = Instruction(computation, opcode, _arrays(shape), operands, text)

    def memory_traffic(self) -> int:
        """Bytes that the entry computation reads from memory and writes to it. It must have no loops."""
        return sum(self._read(i) + sum(a.nbytes for a in _written(i)) for i in self._of(self.entry))

    def loop_body(self) -> str:
        """The computation that the one loop of the entry computation repeats."""
        (loop,) = (i for i in self._of(self.entry) if i.opcode == "while")
        return re.search(r"body=%([\w.-]+)", loop.text)[1]

    def passes(self, size: int, computation: str, scope: str) -> int:
        """How often kernels outside the named scope `scope` read or write an array of `size` bytes, copies included."""
        kernels = [i for i in self._kernels(computation) if not re.search(rf'op_name="[^"]*{scope}', i.text)]
        return sum(a.nbytes == size for i in kernels for a in (*self._operands(i), *i.arrays))

    def kernels(self, computation: str) -> int:
        """How many kernels a computation starts on a GPU: fusions, copies, and calls of libraries."""
        return len(self._kernels(computation))

    def copies(self, computation: str) -> dict[str, int]:
        """The arrays that a computation copies as they are, as in {"f32[3,3,512,512]": 7}, the most frequent first."""
        copies = [i.text for i in self._kernels(computation) if i.opcode == "copy"]
        return dict(collections.Counter(re.match(r"[^{ ]*", text)[0] for text in copies).most_common())

    def collectives(self) -> list[dict]:
        """Each collective: its kind, the bytes that a device puts in, and whether it is in the loop."""
        return [
            {
                "kind": i.opcode.removesuffix("-start"),
                "bytes": sum(a.nbytes for a in self._operands(i)),
                "in_loop": i.computation != self.entry,
            }
            for i in self.instructions.values()
            if i.opcode in (*COLLECTIVES, *STARTED)
        ]

    def _of(self, computation: str) -> list[Instruction]:
        return [i for i in self.instructions.values() if i.computation == computation]

    def _kernels(self, computation: str) -> list[Instruction]:
        return [i for i in self._of(computation) if i.opcode not in (*NAMES, *COLLECTIVES, *STARTED, *DONE)]

    def _operands(self, i: Instruction) -> list[Array]:
        return [a for o in i.operands for a in self.instructions[o].arrays]

    def _read(self, i: Instruction) -> int:
        if i.opcode in NAMES:
            return 0
        if i.opcode == "slice-start":  # of what it is handed it reads the slice
            return i.arrays[1].nbytes if i.arrays[0].in_memory else 0
        return sum(a.nbytes for a in self._operands(i) if a.in_memory)


def _arrays(shape: str) -> list[Array]:
    count = lambda sizes: math.prod(int(n) for n in sizes.split(",") if n)
    return [
        Array(dtype, WIDTH[dtype] * count(sizes), not re.search(r"S\([1-9]", layout))
        for dtype, sizes, layout in ARRAY.findall(shape)
    ]


def _written(i: Instruction) -> list[Array]:
    """The arrays in memory that an instruction writes."""
    if i.opcode in NAMES or "Bitcast" in i.text.split("backend_config")[0]:
        return []
    results = {"copy-start": i.arrays[:1], "slice-start": i.arrays[1:2]}  # (to, from, ...) and ((from), to, ...)
    return [a for a in results.get(i.opcode, i.arrays) if a.in_memory]
