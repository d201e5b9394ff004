"""A linker of one relocatable ELF object: what an emulator needs before it can run compiled kernels."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_TYPES = {"symbols": 2, "relocations": 4, "zeros": 8}
_ALLOCATED = 2
_AARCH64, _X86_64 = 183, 62
_PAGE = 0xFFF


@dataclass(frozen=True)
class Image:
    """A linked object: where it lies, its bytes, and the addresses of its global symbols."""

    base: int
    data: bytes
    symbols: dict[str, int]


@dataclass(frozen=True)
class _Section:
    name: str
    kind: int
    flags: int
    data: bytes
    size: int
    alignment: int
    link: int
    info: int


def link(content: bytes, base: int, import_address: Callable[[str], int]) -> Image:
    """Place the sections of an object at `base`, a page's start, and resolve what they refer to.

    Parameters
    ----------
    content
        An ELF object for x86-64 or AArch64.
    base
        Address of its first byte.
    import_address
        Gives the address of a function that the object does not define.
    """
    machine = int.from_bytes(content[18:20], "little")
    patch = {_AARCH64: _patch_aarch64, _X86_64: _patch_x86}[machine]
    sections = _sections(content)
    starts: dict[int, int] = {}
    end = base
    for index, section in enumerate(sections):
        if section.flags & _ALLOCATED:
            starts[index] = -(-end // section.alignment) * section.alignment
            end = starts[index] + section.size
    names, addresses = _symbols(sections, starts, import_address)
    # One slot of the table of addresses for each symbol, used or not.
    slots = -(-end // 8) * 8
    memory = bytearray(slots + 8 * len(addresses) - base)
    for index, start in starts.items():
        if sections[index].kind != _TYPES["zeros"]:
            memory[start - base : start - base + sections[index].size] = sections[index].data
    for i, address in enumerate(addresses):
        struct.pack_into("<Q", memory, slots + 8 * i - base, address)
    for section in sections:
        if section.kind == _TYPES["relocations"] and section.info in starts:
            for offset, info, addend in _RELOCATION.iter_unpack(section.data):
                symbol, place = info >> 32, starts[section.info] + offset
                patch(memory, base, place, info & 0xFFFFFFFF, addresses[symbol], slots + 8 * symbol, addend)
    return Image(base, bytes(memory), {name: addresses[i] for i, name in enumerate(names) if name})


def _sections(content: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", content, 40)
    count, names_index = struct.unpack_from("<HH", content, 60)
    headers = [_SECTION.unpack_from(content, table + i * _SECTION.size) for i in range(count)]
    names = headers[names_index][4]
    return [
        _Section(_string(content, names + name), kind, flags, content[at : at + size], size, max(align, 1), link, info)
        for name, kind, flags, _, at, size, link, info, align, _ in headers
    ]


def _string(content: bytes, start: int) -> str:
    return content[start : content.index(b"\0", start)].decode()


def _symbols(
    sections: list[_Section], starts: dict[int, int], import_address: Callable[[str], int]
) -> tuple[list[str], list[int]]:
    table = next(section for section in sections if section.kind == _TYPES["symbols"])
    strings = sections[table.link].data
    names, addresses = [], []
    for name, info, _, section, value, _ in _SYMBOL.iter_unpack(table.data):
        is_global, label = info >> 4 != 0, _string(strings, name)
        names.append(label if is_global else "")
        undefined = is_global and section == 0
        addresses.append(import_address(label) if undefined else starts.get(section, 0) + value)
    return names, addresses


def _patch_x86(memory: bytearray, base: int, place: int, kind: int, symbol: int, slot: int, addend: int) -> None:
    at, relative = place - base, (2, 4)  # PC32, PLT32
    if kind == 1:  # 64
        struct.pack_into("<q", memory, at, symbol + addend)
    elif kind in relative:
        struct.pack_into("<i", memory, at, symbol + addend - place)
    elif kind in (9, 41, 42):  # GOTPCREL, GOTPCRELX, REX_GOTPCRELX
        struct.pack_into("<i", memory, at, slot + addend - place)
    else:
        raise NotImplementedError(f"x86-64 relocation {kind}")


# Relocations of 12 bits of an address: kind -> how far it is scaled.
_LOW_12 = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}


def _patch_aarch64(memory: bytearray, base: int, place: int, kind: int, symbol: int, slot: int, addend: int) -> None:
    at, target = place - base, symbol + addend

    def insert(value: int, shift: int, bits: int) -> None:
        (word,) = struct.unpack_from("<I", memory, at)
        struct.pack_into("<I", memory, at, word | (value & (1 << bits) - 1) << shift)

    if kind == 257:  # ABS64
        struct.pack_into("<q", memory, at, target)
    elif kind == 261:  # PREL32
        struct.pack_into("<i", memory, at, target - place)
    elif kind in (275, 311):  # ADR_PREL_PG_HI21, ADR_GOT_PAGE
        pages = ((slot if kind == 311 else target) >> 12) - (place >> 12)
        insert(pages, 29, 2)
        insert(pages >> 2, 5, 19)
    elif kind in _LOW_12:  # ADD_ABS_LO12_NC, LDST*_ABS_LO12_NC
        insert((target & _PAGE) >> _LOW_12[kind], 10, 12)
    elif kind == 312:  # LD64_GOT_LO12_NC
        insert((slot & _PAGE) >> 3, 10, 12)
    elif kind in (282, 283):  # JUMP26, CALL26
        insert((target - place) >> 2, 0, 26)
    else:
        raise NotImplementedError(f"AArch64 relocation {kind}")
