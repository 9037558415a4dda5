"""Defects planted in attention by warp groups, one at a time, as in :mod:`tests.kernels.test_cuda_mutations`: in matrix
descriptors, swizzles, phases and counts of barriers, waits and fences, and in the softmax."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels import test_cuda_attention, test_cuda_attention_wgmma
from tests.kernels.test_cuda_mutations import Defect, plant_and_notice

pytestmark = pytest.mark.slow(reason="compiles every planted defect")


def tried(*options: str) -> None:
    """Skip the trial, which would refuse the kernel, and let no fault of it pass for a reason to use the other form."""
    from vitnp.kernels.cuda import attention_wgmma

    attention_wgmma._reasons[0, options] = ""
    attention_wgmma._refuse = test_cuda_attention_wgmma.raise_it


def attention(cupy, operations):
    """Two images and heads, rows for three warp groups, and more tiles than there are stages."""
    tried()
    test_cuda_attention.test_heads_of_64(cupy, np.float16, 2, 150, 700, 2)


def few_keys(cupy, operations):
    """A key too many would change every mean."""
    tried()
    test_cuda_attention.test_heads_of_64(cupy, np.float16, 1, 3, 6, 1)


def steep(cupy, operations):
    tried()
    test_cuda_attention_wgmma.test_a_maximum_that_moves_from_tile_to_tile(cupy, [()])


def rotation(cupy, operations):
    tried("-DROTARY")
    test_cuda_attention.test_attention_with_rotation(cupy, np.float16, 1, 130, 131, 64, 1)


# (check, what is replaced, by what)
DEFECTS = [
    # Descriptors and swizzles
    (attention, "(1024 >> 4) << 32", "(512 >> 4) << 32"),
    (attention, "1ull << 62", "2ull << 62"),
    (attention, "1ull << 62", "0ull << 62"),
    (attention, "return matrix + (bytes >> 4);", "return matrix + bytes;"),
    (attention, "(unsigned long long)(place >> 4) |", "(unsigned long long)place |"),
    (attention, "further(values, k * 16 * 128)", "further(values, k * 32)"),
    (attention, "further(keys, d * 32)", "further(keys, d * 2048)"),
    (attention, "further(queries, d * 32)", "further(queries, 0)"),
    (attention, "matrix_at(room + QUERIES_AT + group * (TILE / 2))", "matrix_at(room + QUERIES_AT)"),
    (attention, "room = (start + 1023) / 1024 * 1024,", "room = (start + 127) / 128 * 128,"),
    (rotation, "((chunk ^ (row & 7)) << 4)", "(chunk << 4)"),
    # What is copied where
    (attention, "key, column, tile * ROWS, image", "key, column, tile * ROWS, 0"),
    (attention, "value, column, tile * ROWS, image", "value, column, tile * ROWS + 1, image"),
    (attention, "query, column, blockIdx.x * ROWS", "query, column, 0"),
    (attention, "const int column = blockIdx.y * SIZE", "const int column = 0"),
    (attention, "room + VALUES_AT + stage * TILE, value", "room + KEYS_AT + stage * TILE, value"),
    # Barriers: phases, counts, bytes, initialization
    (attention, "before = (tile / STAGES & 1) ^ 1;", "before = tile / STAGES & 1;"),
    (attention, "before = (tile / STAGES & 1) ^ 1;", "before = 1;"),
    (attention, "(KEYS_FULL + tile % STAGES), tile / STAGES & 1);", "(KEYS_FULL + tile % STAGES), 0);"),
    (attention, "(VALUES_FULL + stage), tile / STAGES & 1);", "(VALUES_FULL + stage), 0);"),
    (attention, "(KEYS_EMPTY + stage), WARPS);", "(KEYS_EMPTY + stage), WARPS / 2);"),
    (attention, "(VALUES_EMPTY + stage), WARPS);", "(VALUES_EMPTY + stage), WARPS + 1);"),
    (attention, "barrier_expect(keys_full, TILE);", "barrier_expect(keys_full, TILE / 2);"),
    (attention, "barrier_expect(values_full, TILE);", "barrier_expect(values_full, 2 * TILE);"),
    (attention, "barrier_wait(barriers + 8 * (KEYS_EMPTY + stage), before);", ""),
    (attention, "barrier_wait(barriers + 8 * (VALUES_EMPTY + stage), before);", ""),
    (attention, "barrier_wait(barriers + 8 * QUERIES_FULL, 0);", ""),
    (attention, "barrier_wait(barriers + 8 * (KEYS_FULL + tile % STAGES), tile / STAGES & 1);", ""),
    (attention, "    if (ROWS < keys) await_keys(barriers, 1);", ""),
    (attention, "if (start_key + ROWS < keys) await_keys(barriers, done + 2);", ""),
    (attention, "barrier_wait(barriers + 8 * (VALUES_FULL + stage), tile / STAGES & 1);", ""),
    (attention, "if (lane == 0) barrier_arrive(barriers + 8 * (VALUES", "barrier_arrive(barriers + 8 * (VALUES"),
    (attention, "if (lane == 0) barrier_arrive(barriers + 8 * KEYS_EMPTY);", ""),
    (attention, "        fence_async();\n    }\n", "    }\n"),
    (attention, "__syncthreads();  // the barriers have been initialized", ""),
    # Products under way
    (attention, "products_wait(1);  // the scores have been computed", ""),
    (attention, "products_wait(0);  // the outputs have been computed", ""),
    (attention, "products_wait(0);  // the outputs have been computed", "products_wait(1);"),
    (attention, "products_wait(0);  // all products have been computed", ""),
    (
        attention,
        "        products_wait(1);  // the scores have been computed",
        "        if (lane == 0) barrier_arrive(barriers + 8 * (KEYS_EMPTY + (done + 1) % STAGES)); products_wait(1);",
    ),
    (attention, "        products_wait(0);  // the outputs have been computed\n", "        softmax.rescale(output);\n"),
    (attention, "    products_fence();\n#pragma unroll\n    for (int d", "#pragma unroll\n    for (int d"),
    (attention, "named_barrier(OWN + group, 128);  // the group's queries are not needed any more", ""),
    (attention, "named_barrier(OWN + group, 128);  // the group's queries are", "named_barrier(OWN, 128);  // the"),
    (attention, "__syncwarp();  // the warp's rows are complete", ""),
    # Turns
    (attention, "named_barrier(TURN + group, CONSUMERS);", ""),
    (attention, "named_barrier(TURN + group, CONSUMERS);", "named_barrier(TURN + group, 128);"),
    (attention, "if (group == 0 || start_key + ROWS < keys) named_arrive", "named_arrive"),
    (attention, "if (group == 1 && ROWS < keys) named_arrive(TURN, CONSUMERS);", ""),
    (few_keys, "if (group == 1 && ROWS < keys) named_arrive", "if (group == 1) named_arrive"),
    # Rotation
    (rotation, "    fence_async();\n    named_barrier(OWN + group, 128);", "    named_barrier(OWN + group, 128);"),
    (rotation, "named_barrier(OWN + group, 128);  // the group's queries have been rotated", ""),
    (rotation, "if (first + row >= queries) return;", ""),
    (rotation, "pack(b.x * c.x + a.x * s.x,", "pack(b.x * c.x - a.x * s.x,"),
    # Softmax and output
    (attention, "if (left < ROWS) {", "if (left < 0) {"),
    (few_keys, "2 * (threadIdx.x & 3) + (i & 1) >= left", "2 * (threadIdx.x & 3) + (i & 1) > left"),
    (steep, "softmax.rescale(output);", ""),
    (steep, "sum[r] *= shrink[r];", ""),
    (steep, "output[i] *= shrink[i >> 1 & 1];", "output[i] *= shrink[i & 1];"),
    (steep, "x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));", ""),
    (attention, "total += __shfl_xor_sync(0xffffffffu, total, 1);", ""),
    (attention, "if (first + row < queries)\n            *re", "\n            *re"),
]  # fmt: skip

ALL = [Defect(check, "attention_wgmma", before, after, hopper=True) for check, before, after in DEFECTS]


@pytest.mark.parametrize("defect", ALL, ids=[f"{d.check.__name__}-{i}" for i, d in enumerate(ALL)])
def test_a_planted_defect_is_noticed(defect, monkeypatch):
    plant_and_notice(defect, monkeypatch)
