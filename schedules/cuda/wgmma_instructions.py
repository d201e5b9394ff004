"""Warpgroup instructions as statements of TensorIR: inline assembly, and the same results without it.

TVM 0.27 knows no `wgmma` with a 2:4 operand. Only sm_90a has these instructions, and none of its successors: code that
is to run on those is compiled from the same source for compute_90, where each function becomes `mma` instructions of
the four warps (or nothing, where it only waits), with the same operands in the same places.
"""

from dataclasses import dataclass
from typing import Any

from tvm.backend.cuda.op import cuda_func_call
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.mma_formats import SEGMENT, TOKENS, MmaFormat
from hwpq_tvm.schedules.cuda.ptx import COPY_BYTES

# Bytes of in_features of a token that stand together in shared memory, and of 8 tokens: within these, 16-byte pieces
# are permuted (the hardware's "128-byte swizzle").
ROW_BYTES = 128
SWIZZLE_BYTES = TOKENS * ROW_BYTES
# Registers of weights that an instruction takes.
WEIGHT_REGISTERS = 4

# Defined by nvcc for sm_90a only.
_CONDITION = "#if defined(__CUDA_ARCH_FEAT_SM90_ALL)"


def _function(signature: str, native: str, stand_in: str = "") -> str:
    """Source of a device function with one body for sm_90a and one for all others."""
    head = f"__device__ __forceinline__ void {signature} {{"
    return "\n".join([head, _CONDITION, native, "#else", stand_in, "#endif", "}", ""])


def _tied(constraint: str, array: str, count: int) -> str:
    """Operands of an assembly statement that reads and writes an array: nothing moves them across it."""
    return ", ".join(f'"+{constraint}"({array}[{i}])' for i in range(count))


def _places(first: int, count: int) -> str:
    return "{" + ", ".join(f"%{first + i}" for i in range(count)) + "}"


@dataclass(frozen=True, slots=True)
class Wgmma:
    """The instructions of a warpgroup: 64 output rows by `tokens` tokens, the weights in registers.

    Each warp holds the fragments of `mma` for its 16 rows, in the layout of `layouts.mma`; so `mma` can stand in.

    Attributes
    ----------
    form
        Weight format, one that isn't unpacked.
    tokens
        Tokens of a block, a multiple of 8 up to 256.
    """

    form: MmaFormat
    tokens: int

    @property
    def sums(self) -> int:
        """Accumulators of a thread."""
        return self.tokens // 2

    @property
    def accumulator(self) -> str:
        """Type of the accumulators in TensorIR."""
        return "uint32" if self.form.integer else "float32"

    @property
    def registers(self) -> int:
        """Registers of a segment's weights, without metadata."""
        return self.form.mmas * WEIGHT_REGISTERS

    @property
    def name(self) -> str:
        """Of the instruction, as the PTX ISA spells it."""
        form = self.form
        kind = f"{form.mma.accumulator}.{form.operand}.{form.operand}"
        op = "wgmma.mma_async.sp" if form.sparse else "wgmma.mma_async"
        return f"{op}.sync.aligned.m64n{self.tokens}k{form.mma.k}.{kind}"

    def start(self, sums: Any, weights: Any, count: int) -> None:
        """Make the sums and `count` registers of weights, as they are now, visible to what `multiply` starts."""
        tied = f"{_tied(self._constraint, 'd', self.sums)}, {_tied('r', 'a', count)}"
        native = f'    asm volatile("wgmma.fence.sync.aligned;" : {tied} :: "memory");'
        signature = f"({self._element_type}* d, unsigned* a)"
        name = f"wgmma_start_{self._suffix}_{count}"
        self._call(name, signature, native, "", sums.access_ptr("rw"), weights.access_ptr("rw"))

    def multiply(self, sums: Any, weights: Any, first: int, metadata: Any, selector: int, tokens: Any) -> None:
        """Start adding the products of a segment; the registers are its own until `wait`.

        Parameters
        ----------
        sums
            Accumulators: 4j .. 4j + 3 are those of `mma` for tokens 8j .. 8j + 7.
        weights
            Registers, and which is the first.
        metadata, selector
            As of `mma.sp`.
        tokens
            Pointer to the first token's segment in shared memory: rows of 128 bytes, permuted.
        """
        a = [weights[first + i] for i in range(self.registers)]
        parameters = [f"{self._element_type}* d", *(f"unsigned a{i}" for i in range(self.registers))]
        operands = [sums.access_ptr("rw"), *a]
        if self.form.sparse:
            parameters.append("unsigned e")
            operands.append(metadata)
        signature = f"({', '.join([*parameters, 'const void* b'])})"
        name = f"wgmma_{self._suffix}_{selector}"
        self._call(name, signature, self._native(selector), self._stand_in(selector), *operands, tokens)

    def close_group(self) -> None:
        """Make a group of the products started since the last one."""
        self._call("wgmma_close_group", "()", '    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");', "")

    def wait(self, sums: Any, pending: int) -> None:
        """Wait until no more than the latest `pending` groups are under way; at 0 the sums can be read."""
        tied = _tied(self._constraint, "d", self.sums) if pending == 0 else ""
        native = f'    asm volatile("wgmma.wait_group.sync.aligned {pending};" : {tied} :: "memory");'
        name = f"wgmma_wait_{self._suffix}_{pending}"
        self._call(name, f"({self._element_type}* d)", native, "", sums.access_ptr("rw"))

    @property
    def _element_type(self) -> str:
        return "unsigned" if self.form.integer else "float"

    @property
    def _constraint(self) -> str:
        return "r" if self.form.integer else "f"

    @property
    def _suffix(self) -> str:
        return f"{'sparse' if self.form.sparse else 'dense'}_{self.form.operand}_{self.tokens}"

    @staticmethod
    def _call(name: str, signature: str, native: str, stand_in: str, *operands: Any) -> None:
        T.evaluate(cuda_func_call(name, *operands, source_code=_function(name + signature, native, stand_in)))

    def _native(self, selector: int) -> str:
        """`wgmma` with a descriptor of the tokens: start, distance of 8 tokens, 128-byte swizzle."""
        lines = [
            "    unsigned start = (unsigned)__cvta_generic_to_shared(b);",
            "    unsigned long long tokens = (unsigned long long)((start & 0x3ffff) >> 4) | (1ull << 16)",
            f"        | ({SWIZZLE_BYTES >> 4}ull << 32) | (1ull << 62);",
        ]
        step = SEGMENT // self.form.mmas
        for mma in range(self.form.mmas):
            inputs = [f'"r"(a{WEIGHT_REGISTERS * mma + i})' for i in range(WEIGHT_REGISTERS)]
            inputs.append(f'"l"(tokens + {mma * step >> 4})')
            text = f"{_places(0, self.sums)}, {_places(self.sums, WEIGHT_REGISTERS)}, %{self.sums + WEIGHT_REGISTERS}"
            if self.form.sparse:
                inputs.append('"r"(e)')
                text += f", %{self.sums + WEIGHT_REGISTERS + 1}, {selector}"
            # Add to the sums; take both operands as they are (no transposition either: tokens are rows).
            text += ", p" + {"s8": "", "e4m3": ", 1, 1", "f16": ", 1, 1, 0"}[self.form.operand]
            lines.append('    asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0;"')
            lines.append(f'        "{self.name} {text}; }}"')
            lines.append(f"        : {_tied(self._constraint, 'd', self.sums)} : {', '.join(inputs)});")
        return "\n".join(lines)

    def _stand_in(self, selector: int) -> str:
        """`mma` for each 8 tokens; their four 16-byte pieces come by `ldmatrix`, from where the swizzle put them."""
        lines = [
            "    unsigned lane = threadIdx.x % 32;",
            f"    unsigned start = (unsigned)__cvta_generic_to_shared(b) + lane % 8 * {ROW_BYTES} + lane / 8 * 16;",
            "    start ^= start >> 3 & 0x70;",
            "    #pragma unroll",
            f"    for (int j = 0; j < {self.tokens // TOKENS}; ++j) {{",
            "        unsigned t0, t1, t2, t3;",
            '        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"',
            '            : "=r"(t0), "=r"(t1), "=r"(t2), "=r"(t3)',
            f'            : "r"(start + j * {SWIZZLE_BYTES}) : "memory");',
        ]
        count = self.form.mma.tokens_registers
        for mma in range(self.form.mmas):
            sums = ", ".join(f'"+{self._constraint}"(d[4 * j + {i}])' for i in range(4))
            inputs = [f'"r"(a{WEIGHT_REGISTERS * mma + i})' for i in range(WEIGHT_REGISTERS)]
            inputs += [f'"r"(t{count * mma + i})' for i in range(count)]
            text = f"{_places(0, 4)}, {_places(4, WEIGHT_REGISTERS)}, {_places(8, count)}, {_places(0, 4)}"
            if self.form.sparse:
                inputs.append('"r"(e)')
                text += f", %{8 + count}, {selector}"
            lines.append(f'        asm volatile("{self.form.mma.name} {text};"')
            lines.append(f"            : {sums} : {', '.join(inputs)});")
        return "\n".join([*lines, "    }"])


def see_copies() -> None:
    """Let `wgmma` see what this thread's finished copies wrote to shared memory; a barrier has to follow."""
    body = '    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");'
    T.evaluate(cuda_func_call("wgmma_see_copies", source_code=_function("wgmma_see_copies()", body)))


def pieces_to_swizzle(memory: Any) -> Any:
    """16-byte pieces from the start of a shared array to where a permuted block of 8 tokens can begin, int32."""
    source = f"""__device__ __forceinline__ int pieces_to_swizzle(const void* memory) {{
    return (int)((-(unsigned)__cvta_generic_to_shared(memory) & {SWIZZLE_BYTES - 1}) / {COPY_BYTES});
}}
"""
    return cuda_func_call("pieces_to_swizzle", memory.access_ptr(0), source_code=source, return_type="int32")
