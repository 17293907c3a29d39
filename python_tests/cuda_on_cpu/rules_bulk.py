"""Rules for bulk copies, tensor maps and st.async."""

from __future__ import annotations

from .lower import Lowering
from .parse import SIZES
from .registers import GENERIC, GLOBAL, SHARED
from .rules import TYPES, rule
from .rules_mbarrier import arrive_after_copies, only, places

BYTES = "mbarrier::complete_tx::bytes"
DIMENSIONS = {f"{n}d": n for n in range(1, 6)}
REDUCTIONS = {n: i for i, n in enumerate(("add", "min", "max", "and", "or", "xor"))}
MODIFIERS = (
    f"async bulk tensor prefetch reduce tile L2 global shared::cta shared::cluster {BYTES} "
    f"multicast::cluster bulk_group commit_group wait_group read noftz mbarrier arrive noinc "
    f"{' '.join(DIMENSIONS)} {' '.join(REDUCTIONS)}"
)


def bulk(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """Of cp.async.bulk and cp.reduce.async.bulk."""
    if parts[-1] == "commit_group":
        only(low, parts, "async bulk commit_group")
        return low.emit("bulk.commit", [])
    if "wait_group" in parts:
        only(low, parts, "async bulk wait_group read")
        return low.emit("bulk.wait", [], int(operands[0], 0), "read" in parts)
    if "prefetch" in parts:
        return prefetch(low, parts, operands)
    if "tensor" in parts:
        return tensor(low, parts, operands)
    if "bulk_group" in parts:
        return store(low, parts, operands)
    only(low, parts, f"async bulk shared::cta shared::cluster global {BYTES} multicast::cluster")
    to, source = parts[3:5]
    if BYTES not in parts or (to, source) == ("shared::cta", "shared::cta") or to == "global":
        raise low.unsupported("this kind of bulk copy")
    registers, immediates = places(low, operands[0], operands[1], operands[3])
    mask = low.value(operands[4], "b16") if "multicast::cluster" in parts else -1
    registers += [low.value(operands[2], "b32"), mask]
    low.emit("bulk.load", registers, *immediates, source != "global")


def reduction_of(low: Lowering, parts: list[str]) -> int:
    if parts[1] != "reduce":
        return -1
    return next(REDUCTIONS[part] for part in parts if part in REDUCTIONS)


def store(low: Lowering, parts: list[str], operands: list[str]) -> None:
    reduction, kind = reduction_of(low, parts), "u32"
    if reduction < 0:
        only(low, parts, "async bulk global shared::cta bulk_group")
    else:
        kind = reduced_type(low, parts)
        allowed = f"reduce async bulk global shared::cta bulk_group noftz {kind}"
        only(low, parts, f"{allowed} {' '.join(REDUCTIONS)} b32 b64")
    if parts.index("global") > parts.index("shared::cta"):
        raise low.unsupported("a bulk group of a copy to shared memory")
    registers, immediates = places(low, operands[0], operands[1], None)
    registers.append(low.value(operands[2], "b32"))
    low.emit("bulk.store", registers, *immediates, reduction, TYPES[kind])


def reduced_type(low: Lowering, parts: list[str]) -> str:
    operation = next(part for part in parts if part in REDUCTIONS)
    kind = parts[-1]
    allowed = {
        "add": ("u32", "s32", "u64", "f16", "bf16", "f32", "f64"),
        "min": ("u32", "s32", "u64", "s64", "f16", "bf16"),
        "max": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    }.get(operation, ("b32", "b64"))
    if kind not in allowed or ("noftz" in parts) != (
        kind in ("f16", "bf16") and operation == "add"
    ):
        raise low.unsupported(f"{operation} of {kind}")
    return kind.replace("b", "u") if kind in ("b32", "b64") else kind


def map_and_coordinates(low: Lowering, operand: str, dimensions: int) -> tuple[str, list[int]]:
    """Of "[map, {x, y}]"."""
    address, vector = low.split(operand.strip()[1:-1])[:2]
    coordinates = low.split(vector[1:-1])
    if len(coordinates) != dimensions:
        raise low.unsupported(f"{len(coordinates)} coordinates")
    return f"[{address}]", [low.value(c, "b32") for c in coordinates]


def tensor(low: Lowering, parts: list[str], operands: list[str]) -> None:
    size = next(part for part in parts if part in DIMENSIONS)
    n = DIMENSIONS[size]
    common = f"async bulk tensor {size} tile global shared::cta"
    if "bulk_group" in parts:
        reduction = reduction_of(low, parts)
        reduces = f"reduce {' '.join(REDUCTIONS)}" if reduction >= 0 else ""
        only(low, parts, f"{common} bulk_group {reduces}")
        where, coordinates = map_and_coordinates(low, operands[0], n)
        registers, immediates = places(low, where, operands[1], None)
        return low.emit("tensor.store", registers + coordinates, *immediates, reduction, n)
    only(low, parts, f"{common} shared::cluster {BYTES} multicast::cluster")
    if BYTES not in parts or parts[1] == "reduce":
        raise low.unsupported("this kind of tensor copy")
    where, coordinates = map_and_coordinates(low, operands[1], n)
    registers, immediates = places(low, operands[0], where, operands[2])
    registers.append(low.value(operands[3], "b16") if "multicast::cluster" in parts else -1)
    low.emit("tensor.load", registers + coordinates, *immediates, 0, n)


def prefetch(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """Counted, and its bounds are checked."""
    if "tensor" not in parts:
        only(low, parts, "async bulk prefetch L2 global")
        registers, immediates = places(low, None, operands[0])
        registers += [-1, low.value(operands[1], "b32")]
        return low.emit("bulk.prefetch", registers, *immediates)
    size = next(part for part in parts if part in DIMENSIONS)
    only(low, parts, f"async bulk prefetch tensor {size} L2 global tile")
    where, coordinates = map_and_coordinates(low, operands[0], DIMENSIONS[size])
    registers, immediates = places(low, where, None, None)
    low.emit("tensor.prefetch", registers + coordinates, *immediates, 0, DIMENSIONS[size])


def prefetch_map(low: Lowering, parts: list[str], operands: list[str]) -> None:
    """prefetch.tensormap of a generic address."""
    only(low, parts, "tensormap")
    registers, immediates = places(low, operands[0], None, None)
    low.emit("tensor.prefetch", registers, *immediates, 0, 0)


def asynchronous(low: Lowering, parts: list[str], operands: list[str]) -> bool:
    """The forms of cp that are not a plain cp.async; whether this is one."""
    if parts[1:3] == ["async", "mbarrier"]:
        arrive_after_copies(low, parts, operands)
    elif "bulk" in parts[1:4] and "async" in parts[1:3]:
        bulk(low, parts, operands)
    else:
        return False
    return True


def store_async(low: Lowering, parts: list[str], operands: list[str]) -> None:
    kind = parts[-1]
    only(low, parts, f"async weak shared::cluster {BYTES} v2 v4 {kind}")
    if parts[1] != "async" or BYTES not in parts or SIZES[kind] not in (4, 8):
        raise low.unsupported("this kind of st.async")
    value = operands[1]
    elements = low.split(value[1:-1]) if value.startswith("{") else [value]
    registers, immediates = places(low, operands[0], None, operands[2])
    registers += [low.value(e, kind) for e in elements]
    low.emit("st.async", registers, *immediates, SIZES[kind])


FIELDS = (
    "global_address",
    "rank",
    "box_dim",
    "global_dim",
    "global_stride",
    "element_stride",
    "elemtype",
    "interleave_layout",
    "swizzle_mode",
    "swizzle_atomicity",
    "fill_mode",
)
COPIED = "cp_fenceproxy global shared::cta tensormap::generic release gpu sync aligned"


@rule(
    "tensormap",
    allow=f"replace tile b1024 cta cluster sys {COPIED} {' '.join(FIELDS)}",
)
def tensormap(low: Lowering, parts: list[str], operands: list[str]) -> None:
    if parts[1] == "cp_fenceproxy":
        only(low, parts, f"{COPIED} cta cluster sys")
        if operands[2].strip() not in ("128", "0x80"):
            raise low.unsupported("a size other than 128")
        registers, immediates = places(low, operands[0], operands[1])
        return low.emit("tensormap.copy", registers, *immediates, 0, -1)
    field = parts[3]
    only(low, parts, f"replace tile {field} global shared::cta b1024 b32 b64")
    if parts[1:3] != ["replace", "tile"] or parts[-2] != "b1024":
        raise low.unsupported("this kind of tensormap.replace")
    ordinal = int(operands[1], 0) if len(operands) == 3 else 0
    kind = parts[-1]
    space = GLOBAL if "global" in parts else SHARED if "shared::cta" in parts else GENERIC
    registers, immediates = places(low, operands[0])
    registers.append(low.value(operands[-1], kind))
    packed = ordinal | space << 8 | SIZES[kind] << 16
    low.emit("tensormap.replace", registers, *immediates, FIELDS.index(field), packed)
