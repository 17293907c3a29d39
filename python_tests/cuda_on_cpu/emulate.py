"""``emulate(ptx)[grid, block, shared](*tensors)``: runs one kernel of a PTX module on the CPU."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from . import gpu, occupancy
from .arguments import pack
from .build import core
from .classes import by_line
from .errors import BY_KIND, BadLaunch, Finding
from .limits import check_cluster, check_cooperative, check_limits
from .loaded import Loaded
from .lower import Lowering
from .options import Options
from .parse import parse
from .structs import COUNTS, Buffer, Counts, Fault, Init, Inst, Launch, Program


@dataclass
class Report:
    """What a launch did. ``counts`` are counts: nothing here is a time."""

    counts: dict[str, int]
    warnings: list[Finding] = field(default_factory=list)
    executed: dict[int, int] = field(default_factory=dict)  # warp instructions by PTX line
    classes: dict[str, int] = field(default_factory=dict)  # and by class, see classes.py
    output: list[str] = field(default_factory=list)  # of printf, one text for each call of a thread


class Shape(NamedTuple):
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared: int
    cluster: tuple[int, int, int]
    explicit_cluster: bool


class Kernel:
    """One entry of a module; ``kernel[grid, block, dynamic_shared](*args, seed=0)`` launches it."""

    def __init__(self, loaded: Loaded, name: str, target: str):
        self.name, self.loaded, self.target = name, loaded, target
        self.entry = loaded.module.functions[name]
        addresses = {variable: loaded.address(variable) for variable in loaded.memory}
        self.lowering = Lowering(loaded.module, self.entry, addresses)
        self._program = self._encode()

    def _encode(self) -> Program:
        low = self.lowering
        pool: list[int] = []
        self._insts = (Inst * len(low.instructions))()
        for out, one in zip(self._insts, low.instructions, strict=True):
            immediates = (ctypes.c_int64 * 6)(*one.immediates)
            first, count = len(pool), len(one.operands)
            pool += one.operands
            out.handler, out.guard, out.negate = one.handler, one.guard, one.negate
            out.operands, out.count, out.target, out.imm = first, count, one.place, immediates
        self._pool = (ctypes.c_int32 * max(len(pool), 1))(*pool)
        self._inits = (Init * max(len(low.inits), 1))(*low.inits)
        return Program(
            self._insts,
            len(low.instructions),
            self._pool,
            self._inits,
            len(low.inits),
            low.register_bytes,
            low.static_shared,
            -(-low.local_bytes // 16) * 16,
        )

    def __getitem__(self, configuration):
        grid, block, *rest = configuration
        shared = rest[0] if rest else 0
        return lambda *args, **options: self.launch(grid, block, args, shared, **options)

    def launch(self, grid, block, args, dynamic_shared=0, **options) -> Report:
        """Runs the kernel on tensors, numbers and ``None`` in the order of its parameters.

        ``options``: the fields of ``Options``.
        """
        wanted = Options(**options)
        shape = self._shape(grid, block, dynamic_shared, wanted)
        memory = self._arguments(args)
        twin = None
        if gpu.can_run(self.target, wanted):
            twin = gpu.Twin(self.name, self.entry.params, args)
        try:
            report = self._emulate(shape, memory, wanted)
            if twin is not None:
                on_gpu = self.loaded.on_gpu
                twin.confirm(on_gpu, shape.grid, shape.block, dynamic_shared, wanted)
        finally:
            if twin is not None:
                twin.free()
        return report

    def _shape(self, grid, block, dynamic_shared, wanted: Options) -> Shape:
        """The launch's numbers, checked against what the architecture and the kernel allow."""
        grid, block = _three(grid, "grid"), _three(block, "block")
        static = self.lowering.static_shared
        directives = self.entry.directives
        check_limits(self.target, directives, grid, block, static, dynamic_shared)
        threads = block[0] * block[1] * block[2]
        occupancy.check_registers(self.loaded.ptx, self.name, self.target, directives, threads)
        cluster = _three(wanted.cluster, "cluster") if wanted.cluster else None
        size, explicit = check_cluster(self.target, directives, grid, cluster)
        if wanted.cooperative:
            check_cooperative(self.target, grid, block, static + dynamic_shared)
        return Shape(grid, block, dynamic_shared, size, explicit)

    def _emulate(self, shape: Shape, memory: tuple[bytes, list[Buffer]], wanted: Options) -> Report:
        params, buffers = memory[0], [*memory[1], *wanted.buffers]
        resident, workspace = wanted.resident, ctypes.create_string_buffer(64)
        if wanted.cooperative:
            resident = max(resident, shape.grid[0] * shape.grid[1] * shape.grid[2])
            buffers.append(Buffer(ctypes.addressof(workspace), 64))
        array = (Buffer * max(len(buffers), 1))(*buffers)
        block = shape.block
        launch = Launch(
            shape.grid,
            block,
            shape.dynamic_shared,
            array,
            len(buffers),
            params,
            len(params),
            wanted.seed,
            resident,
            wanted.max_steps,
            executed := (ctypes.c_uint64 * len(self._insts))(),
            (ctypes.c_void_p * len(array))(*(buffer.written for buffer in buffers)),
            shape.cluster,
            shape.explicit_cluster,
            ctypes.addressof(workspace) if wanted.cooperative else 0,
        )
        counts, fault = Counts(), Fault()
        core().emu_launch(
            ctypes.byref(self._program),
            ctypes.byref(launch),
            ctypes.byref(counts),
            ctypes.byref(fault),
        )
        output = core().emu_take_output().decode(errors="replace").split("\x1e")[:-1]
        if fault.kind:
            where = self._where(fault.inst, tuple(fault.block), fault.thread, block)
            error = BY_KIND[fault.kind](self._with_lines(fault.text.decode()) + where)
            error.output = output
            raise error
        report = Report({name: getattr(counts, name) for name in COUNTS}, output=output)
        report.executed, report.classes = by_line(self.lowering.instructions, executed)
        for line in core().emu_warnings().decode().splitlines():
            inst, place, thread, kind, text = line.split("\t")
            at = tuple(int(i) for i in place.split(","))
            text += self._where(int(inst), at, int(thread), block)
            report.warnings.append(Finding(text, int(kind)))
        return report

    def _arguments(self, args) -> tuple[bytes, list[Buffer]]:
        variables = self.entry.params
        if len(args) != len(variables):
            raise BadLaunch(f"{self.name} takes {len(variables)} arguments, got {len(args)}")
        params = bytearray(self.lowering.param_bytes)
        buffers = [
            Buffer(self.loaded.address(name), self.loaded.module.variables[name].size)
            for name in self.loaded.memory
        ]
        for variable, offset, value in zip(
            variables, self.lowering.param_offsets, args, strict=True
        ):
            params[offset : offset + variable.size] = pack(variable, value, buffers)
        return bytes(params), buffers

    def _line(self, inst: int) -> str:
        one = self.lowering.instructions[inst]
        source = f", {one.source[0].rsplit('/', 1)[-1]}:{one.source[1]}" if one.source else ""
        return f"PTX line {one.line}{source}: {one.text}"

    def _with_lines(self, text: str) -> str:
        return re.sub(r"\{inst (\d+)\}", lambda m: f"({self._line(int(m[1]))})", text)

    def _where(self, inst: int, block_id, thread: int, block) -> str:
        x, y = thread % block[0], thread // block[0] % block[1]
        lane = (x, y, thread // block[0] // block[1])
        return f" [block {block_id}, thread {lane}, {self._line(inst)}]"


def _three(value, name: str) -> tuple[int, int, int]:
    numbers = (value,) if isinstance(value, int) else tuple(value)
    if not 1 <= len(numbers) <= 3:
        raise BadLaunch(f"{name} must have one to three numbers, got {numbers}")
    return (*numbers, *[1] * (3 - len(numbers)))


def emulate(ptx: str, name: str | None = None) -> Kernel:
    """A kernel of a PTX module; ``name`` may be left out where there is one.

    Raises:
        Unsupported: for an instruction, type or modifier that the emulator does not know.
    """
    module = parse(ptx)
    entries = [function.name for function in module.functions.values() if function.is_entry]
    if name is None:
        if len(entries) != 1:
            raise ValueError(f"name must be one of {', '.join(entries)}")
        name = entries[0]
    if name not in entries:
        raise ValueError(f"name must be one of {', '.join(entries)}, got {name}")
    return Kernel(Loaded(module, ptx), name, module.target)
