"""Defects planted in the CUDA kernels, one at a time: the emulator or the kernels' own tests notice each of them.

A check is a call of a test that stands elsewhere. It passes with the kernels as they are, and has to fail with every
defect that's listed for it: by a fault that the emulator's check mode reports, or by a wrong result.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import cuda_emulator
import fake_cupy
import numpy as np
import pytest

from tests.kernels import (
    test_cuda_attention,
    test_cuda_image,
    test_cuda_image_level,
    test_cuda_kernels,
    test_cuda_refine,
)

pytestmark = pytest.mark.slow(reason="compiles every planted defect")


def as_it_is(model: tuple[str, int]) -> None:
    """Stands for the fixture that changes the GPU: here it stays."""


def kmeans_8(cupy, operations):
    test_cuda_kernels.test_kmeans_step(cupy, operations, as_it_is, 330, 8, 64, np.float32, "cosine", None)


def kmeans_27(cupy, operations):
    test_cuda_kernels.test_kmeans_step(cupy, operations, as_it_is, 150, 27, 64, np.float16, "cosine", None)


def closer(cupy, operations):
    test_cuda_kernels.test_kmeans_assign_and_closer(
        cupy, operations, as_it_is, 77, 8, 64, np.float32, "euclidean", None
    )


def similarity(cupy, operations):
    test_cuda_kernels.test_similarity(cupy, operations, as_it_is, 110, 130, 64, np.float32, 5, None)


def long_sums(cupy, operations):
    test_cuda_kernels.test_long_sums_are_not_cut_off(cupy, operations)


def layernorm(cupy, operations):
    test_cuda_kernels.test_layernorm(cupy, operations, np.float32, 384)


def linear(cupy, operations):
    test_cuda_kernels.test_linear(cupy, operations, np.float32, ("bias", "scale", "residual"))


def attention_half(cupy, operations):
    test_cuda_attention.test_heads_of_64(cupy, np.float16, 1, 17, 200, 2)


def attention_float(cupy, operations):
    test_cuda_attention.test_heads_of_64(cupy, np.float32, 1, 17, 200, 2)


def attention_any(cupy, operations):
    test_cuda_attention.test_heads_of_any_other_size(cupy, np.float32, 5, 33)


def rotary_half(cupy, operations):
    test_cuda_attention.test_attention_with_rotation(cupy, np.float16, 1, 130, 131, 64, 1)


def rotary_float(cupy, operations):
    test_cuda_attention.test_attention_with_rotation(cupy, np.float32, 1, 130, 131, 64, 1)


def rotary_any(cupy, operations):
    test_cuda_attention.test_attention_with_rotation(cupy, np.float32, 1, 5, 40, 80, 2)


def rotary_keys(cupy, operations):
    test_cuda_attention.test_keys_of_a_fused_product_are_rotated_where_they_lie(cupy, "fp16", 4e-3, 64)


def solver(cupy, operations):
    test_cuda_refine.test_solver_gives_the_cpu_s_answer(cupy, 24, 31, 4.0)


def lattice(cupy, operations):
    test_cuda_refine.test_lattice(cupy, 2, 300, 20)


def lattice_filter(cupy, operations):
    test_cuda_refine.test_filter(cupy, 2, 300, 1)


def guided(cupy, operations):
    from vitnp.kernels.cuda import guided

    test_cuda_image.test_guided_filter(cupy, guided, (14, 17), 4)


def bilinear(cupy, operations):
    from vitnp.kernels.cuda import image

    test_cuda_image.test_bilinear_gives_the_cpu_s_bits(cupy, image, (3, 4), (17, 23))


def image_level(cupy, operations):
    test_cuda_image_level.test_a_batch_of_different_grids_gets_the_answers_of_the_cpu(cupy)


def many_rows(cupy, operations):
    test_cuda_image_level.test_more_rows_than_threads(cupy)


def single_patch(cupy, operations):
    test_cuda_image_level.test_attention_of_a_single_patch_counts_no_more_than_the_percentile(cupy)


def empty_clusters(cupy, operations):
    for case in test_cuda_image_level.HARD:
        test_cuda_image_level.test_clusters_that_stay_empty(cupy, case)


def empty_clusters_that_matter(cupy, operations):
    for case in test_cuda_image_level.REACHED:
        test_cuda_image_level.test_empty_clusters_that_matter(cupy, case)


def solver_of_several(cupy, operations):
    test_cuda_refine.test_photographs_of_a_size_get_the_same_bits_together_and_alone(cupy)


def crf_of_several(cupy, operations):
    with pytest.MonkeyPatch.context() as patch:
        test_cuda_refine.test_crf_of_photographs_of_a_size_has_the_same_bits_together_and_alone(cupy, patch)


def radix_sort(cupy, operations):
    test_cuda_refine.test_sort_by_bits(cupy, 2600)


def guided_of_several(cupy, operations):
    from vitnp.kernels.cuda import guided, image

    test_cuda_image.test_maps_of_several_photographs(cupy, image, guided)


def several_cleaned(cupy, operations):
    from vitnp.kernels.cuda import image

    test_cuda_image.test_maps_of_several_photographs_are_cleaned_together(cupy, image)


BARRIER = "__syncthreads();"

# (check, file, what is replaced, by what); a barrier is named by its comment and taken away.
DEFECTS = [
    # k-means and what it shares with similarity
    (kmeans_8, "kmeans", "the tile has arrived; the last products have been used"),
    (kmeans_8, "kmeans", "products and squares have been computed"),
    (kmeans_8, "kmeans", "the tile's stage is free"),
    (kmeans_8, "kmeans", "all labels of the tile have been computed"),
    (kmeans_8, "kmeans", "the rows are sorted"),
    (kmeans_8, "kmeans", "wait_for_copies<STAGES - 1>();", ""),
    (kmeans_8, "kmeans", "wait_for_copies<STAGES - 1>();", "wait_for_copies<STAGES>();"),
    (kmeans_8, "kmeans", "min(first + row, problem.n - 1)", "first + row"),
    (kmeans_8, "kmeans", "if (threadIdx.x % LANES == 0 && row.exists)", "if (threadIdx.x % LANES == 0)"),
    (kmeans_8, "kmeans", "rank == best_rank && column < best", "rank == best_rank && column > best"),
    (kmeans_8, "kmeans", "for (int step = LANES / 2;", "for (int step = LANES / 4;"),
    (kmeans_8, "kmeans", "if (earlier == 0) counts[label] += same;", "counts[label]++;"),
    (kmeans_8, "kmeans", "i < row ? 0x10100 : 0x10000", "i <= row ? 0x10100 : 0x10000"),
    (kmeans_8, "kmeans", "sums[i] = 0.f;", ";"),
    (kmeans_8, "kmeans", "return rows * X_PITCH * sizeof(real);", "return rows * X_PITCH * sizeof(real) + 64;"),
    (
        kmeans_8,
        "kmeans",
        "outcome.members[lower + earlier] = {",
        "__syncthreads(); outcome.members[lower + earlier] = {",
    ),
    (kmeans_8, "kmeans", "__shfl_xor_sync(EVERY_LANE, sum, 1)", "__shfl_xor_sync(0x0000ffffu, sum, 1)"),
    (kmeans_8, "kmeans", "multiply_tf32(c, x.low[step], y.high[step]);", ""),
    (kmeans_8, "kmeans", "block + j < blocks", "block + j < blocks - 1"),
    (kmeans_27, "kmeans", "for (int part = 0; part < 2; part++)", "for (int part = 0; part < 1; part++)"),
    (kmeans_27, "kmeans", "exists ? y[place] * scale : 0.f", "y[place] * scale"),
    (kmeans_27, "kmeans", "__syncthreads();\n    squares = sums[0][0]", "squares = sums[0][0]"),
    (closer, "kmeans", "if (!row.exists) continue;", ""),
    (similarity, "similarity", "!(value > least)", "!(value >= least)"),
    (similarity, "similarity", "length = 0;", ""),
    (long_sums, "similarity", "multiply(part_of_sum, left[i], right);", "multiply(sums[i][j], left[i], right);"),
    (similarity, "similarity", "head += more && own == column;", "head += more;"),
    (similarity, "similarity", "out[row.number * columns + column] =", "out[row.number * columns + column + 1] ="),
    # The image level of a batch
    (image_level, "image_level", "the warps' sums have been stored"),
    (image_level, "image_level", "the sums have been used"),
    (image_level, "image_level", "the warps' distances have been stored"),
    (image_level, "image_level", "all prefix sums have been computed"),
    (image_level, "image_level", "the candidates have been drawn"),
    (many_rows, "image_level", "the losses have been updated; the centroid has been copied"),
    (image_level, "image_level", "the first centroid has been copied"),
    (image_level, "image_level", "the candidates have been copied"),
    (image_level, "image_level", "all cosines have been computed"),
    (image_level, "image_level", "the rows of each cluster have been counted"),
    (image_level, "image_level", "the first place of each cluster is known"),
    (image_level, "image_level", "the groups' sums have been stored"),
    (image_level, "image_level", "the groups' sums have been used"),
    (image_level, "image_level", "all centroids have moved"),
    (image_level, "image_level", "attention and border of each cluster are known"),
    (image_level, "image_level", "the foreground is known"),
    (image_level, "image_level", "(int)draws[0]", "(int)draws[0] + 1"),
    (image_level, "image_level", "room.ends[middle] > target", "room.ends[middle] < target"),
    (many_rows, "image_level", "if (running > target) break;", ""),
    (image_level, "image_level", "total < least", "total > least"),
    (image_level, "image_level", "if (score > largest)", "if (score < largest)"),
    (image_level, "image_level", "__popc(all & ((1u << lane) - 1))", "__popc(all & ((2u << lane) - 1))"),
    (image_level, "image_level", "place < last ? scale[row] : 0.f", "scale[row]"),
    (
        image_level,
        "image_level",
        "for (int first = room.starts[cluster] + offset;",
        "for (int first = room.starts[cluster];",
    ),
    (image_level, "image_level", "moves == max_iterations ||", "moves == 1 ||"),
    (single_patch, "image_level", "min((int)place, n - 1)", "min((int)place + 1, n - 1)"),
    (image_level, "image_level", "(double)(n - inner) / n", "(double)inner / n"),
    (
        image_level,
        "image_level",
        "if (above == 0) room.foreground[best] = 1;",
        "if (above == 0) room.foreground[0] = 1;",
    ),
    (
        image_level,
        "image_level",
        "inertia[job + run] < inertia[job + best]",
        "inertia[job + run] > inertia[job + best]",
    ),
    (image_level, "image_level", "if (numbers[3 * number] >= n + texture) continue;", ""),
    (image_level, "image_level", "min(own + r, n - 1) * width", "(own + r) * width"),
    (image_level, "image_level", "own + r < n && column + c < count", "column + c < count"),
    (image_level, "image_level", "own[0], place = first * jobs", "own[0], place = (first + 1) * jobs"),
    (empty_clusters, "image_level", "the counts have been read"),
    (empty_clusters, "image_level", "the row has moved"),
    (empty_clusters, "image_level", "the warps' keys have been stored"),
    (empty_clusters, "image_level", "if (empty) fill_empty();", ""),
    (empty_clusters, "image_level", "squares > 0.f ? 1.f / sqrtf(squares) : 0.f", "1.f / sqrtf(squares)"),
    (empty_clusters_that_matter, "image_level", "scale[row] > 0.f && key < before", "key < before"),
    (empty_clusters_that_matter, "image_level", "scale[row] > 0.f && key < before", "scale[row] > 0.f"),
    (empty_clusters_that_matter, "image_level", "if (room.counts[label] == 1) continue;", ""),
    (empty_clusters_that_matter, "image_level", "if (empty == clusters) break;", ""),
    (empty_clusters, "image_level", "if (before == 0) break;", ""),
    (empty_clusters, "image_level", "if (length == 0.0) continue;", ""),
    (
        empty_clusters_that_matter,
        "image_level",
        "if (room.counts[c] == 0) continue;\n        occupied++;\n        const double size",
        "occupied++;\n        const double size",
    ),
    (
        empty_clusters_that_matter,
        "image_level",
        "if (room.counts[c] == 0) continue;\n        occupied++;\n        if (smallest",
        "occupied++;\n        if (smallest",
    ),
    (empty_clusters_that_matter, "image_level", "else if (above == occupied && occupied > 1)", "else if (false)"),
    (empty_clusters_that_matter, "image_level", "above == occupied && occupied > 1", "above == occupied"),
    (empty_clusters_that_matter, "image_level", "if (occupied > 1) room", "room"),
    # Layers
    (layernorm, "layernorm", "if (row >= rows) return;", ""),
    (layernorm, "layernorm", "if (row >= rows) return;", "if (row >= rows || (row == 3 && lane > 15)) return;"),
    (layernorm, "layernorm", "for (int step = 16;", "for (int step = 8;"),
    (linear, "gelu", "if (i >= size) return;", ""),
    (linear, "gelu", "load(scale + column)", "load(scale)"),
    # Attention
    (attention_half, "attention", "the first tiles have arrived"),
    (attention_half, "attention", "the next tile has arrived, and this one has been used"),
    (attention_half, "attention", "if (start + KEYS > keys) {", "if (start > keys) {"),
    (attention_half, "attention", "if (first + row < queries)\n", ""),
    (attention_float, "attention", "the keys have arrived"),
    (attention_float, "attention", "the values have arrived"),
    (attention_float, "attention", "values and probabilities have been used"),
    (attention_any, "attention", "__syncwarp();  // the probabilities have been computed", ""),
    # Rotary position embeddings
    (rotary_half, "attention", "if (row >= queries) continue;", ""),
    (rotary_half, "attention", "if (ROTATED) rotate_fragments(left, rotation, first + mine, queries);", ""),
    (rotary_half, "attention", "first + half * 16 + (i & 1) * 8 + (lane >> 2)", "first + half * 16 + (lane >> 2)"),
    (rotary_half, "attention", "d * 16 + (i >> 1) * 8 + 2 * (lane & 3)", "d * 16 + (i & 1) * 8 + 2 * (lane & 3)"),
    (rotary_half, "attention", "x.x * c.x - y.x * s.x, x.y * c.y - y.y * s.y", "x.x * c.x - y.x * s.x, x.y * c.y"),
    (rotary_float, "attention", "column < SIZE / 2; column += 8", "column < SIZE / 2; column += 16"),
    (rotary_float, "attention", "x.w * c.w - y.w * s.w", "x.w * c.w + y.w * s.w"),
    (rotary_float, "attention", "y.y * c.y + x.y * s.y, y.z", "y.y * c.y + x.x * s.y, y.z"),
    (rotary_any, "attention", "second ? sine : -sine", "sine"),
    (rotary_any, "attention", "rotation + row * size + point", "rotation + row * size + d"),
    (rotary_keys, "rotation", "i < heads * pieces", "i < pieces"),
    (rotary_keys, "rotation", "rotation += blockIdx.x * 2ll * half;", ""),
    (rotary_keys, "rotation", "blockIdx.x * out_row + blockIdx.y * out_image", "blockIdx.x * out_row"),
    (rotary_keys, "rotation", "store(out + at + half, new_second);", "store(out + at + half + 1, new_second);"),
    # Refinement
    (solver, "solver", "the warps' sums have been stored"),
    (solver, "solver", "the sums have been stored"),
    (solver, "solver", "if (other >= 0) total += x[other];", "total += x[other];"),
    (solver, "solver", "sorted[i] & ((1ll << shift) - 1)", "sorted[i]"),
    (solver_of_several, "solver", "if (i % each == 0) first[i / each] = v;", "if (i == 0) first[0] = v;"),
    (solver_of_several, "solver", "blockIdx.y * gridDim.x + blockIdx.x;", "blockIdx.x;"),
    (solver_of_several, "solver", "    partial += blockIdx.y * gridDim.x;\n", ""),
    (solver_of_several, "solver", "int last = first[blockIdx.y + 1]", "int last = first[gridDim.y]"),
    (solver_of_several, "image", "long long key = i / (height * width);", "long long key = 0;"),
    (radix_sort, "sort", "__syncwarp();  // the counts are zero", ""),
    (radix_sort, "sort", "__syncwarp();  // the tile has been counted", ""),
    (radix_sort, "sort", "__syncwarp();  // the first places are known", ""),
    (radix_sort, "sort", "__syncwarp();  // the places have been read", ""),
    (radix_sort, "sort", "__syncwarp();  // the next places are known", ""),
    (radix_sort, "sort", "ends[place] - counts[place]", "ends[place]"),
    (radix_sort, "sort", "(1u << lane) - 1", "(2u << lane) - 1"),
    (radix_sort, "sort", "if (mine) out[", "out["),
    (radix_sort, "sort", "if (tile >= tiles) return;", ""),
    (
        lattice,
        "crf",
        "Key found = atomicCAS(&table[at], EMPTY, key);",
        "Key found = table[at]; if (found == EMPTY) table[at] = key;",
    ),
    (lattice, "crf", "atomicMin(&touched[at], entry);", "touched[at] = min(touched[at], entry);"),
    (lattice_filter, "crf", "v < vertices; v +=", "v <= vertices; v +="),
    (crf_of_several, "crf", "point / each * span", "0"),
    (crf_of_several, "crf", "v += gridDim.x * warps", "v += vertices"),
    (crf_of_several, "crf", "i += (long long)gridDim.x * blockDim.x", "i += (long long)vertices * classes"),
    (crf_of_several, "crf", "if (at == 0 && blockIdx.y == 0) *count", "if (at == 1) *count"),
    (guided, "guided", "min(column + radius + 1, width)", "min(column + radius + 1, width + 1)"),
    (bilinear, "image", "min(l + 1, w - 1)", "l + 1"),
    (several_cleaned, "image", "summary += 2 * blockIdx.z;\n    if", "if"),
    (several_cleaned, "image", "out += map;", ""),
    (several_cleaned, "image", "size += (long long)blockIdx.z * pixels;\n    label[i]", "label[i]"),
    (guided_of_several, "image", "values += (long long)blockIdx.z * h * w;", ""),
    (guided_of_several, "guided", "rgb += 3 * blockIdx.z * pixels;\n    target", "target"),
    (guided_of_several, "guided", "(PLANES * blockIdx.z + blockIdx.y)", "blockIdx.y"),
    (guided_of_several, "guided", "moments += MOMENTS * blockIdx.z * pixels;", ""),
    (guided_of_several, "guided", "planes += (long long)PLANES * blockIdx.z * h * w;", ""),
]


@dataclasses.dataclass(frozen=True)
class Defect:
    check: Callable
    file: str
    before: str
    after: str | None
    hopper: bool = False  # on a GPU of compute capability 9.0

    def plant(self, text: str) -> str:
        """The file's text with the defect, all else on the lines where it was."""
        before, after = (f"{BARRIER}  // {self.before}", "") if self.after is None else (self.before, self.after)
        assert before in text, f"{self.file}.cu no longer has {before!r}"
        return text.replace(before, after + "\n" * (before.count("\n") - after.count("\n")))


ALL = [Defect(check, file, before, *(after or [None])) for check, file, before, *after in DEFECTS]


@functools.cache
def builds(check: Callable, file: str, hopper: bool = False) -> frozenset[tuple[tuple[str, ...], str]]:
    """Options and mode of each build of a file that a check uses; the check passes with the kernels as they are."""
    from vitnp.kernels.cuda import loader

    used, text, emulated = set(), loader.source(f"{file}.cu"), fake_cupy._emulated

    def record(code, options, mode):
        if code == text:
            used.add((options, mode))
        return emulated(code, options, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_cupy, "_emulated", record)
        with fake_cupy.installed("check", hopper=hopper) as cupy:
            from vitnp.kernels.cuda import dispatch

            check(cupy, dispatch)
    return frozenset(used)


@pytest.mark.parametrize("defect", ALL, ids=[f"{d.check.__name__}-{d.file}-{i}" for i, d in enumerate(ALL)])
def test_a_planted_defect_is_noticed(defect, monkeypatch):
    plant_and_notice(defect, monkeypatch)


def plant_and_notice(defect: Defect, monkeypatch) -> None:
    from vitnp.kernels.cuda.loader import source as whole

    text = defect.plant(whole(f"{defect.file}.cu"))
    # That it compiles is no part of what has to fail.
    for options, mode in builds(defect.check, defect.file, defect.hopper):
        cuda_emulator.RawModule(text, options, mode, f"{defect.file}.cu")
    with fake_cupy.installed("check", hopper=defect.hopper) as cupy:
        from vitnp.kernels.cuda import dispatch, loader  # imported anew

        monkeypatch.setattr(loader, "source", lambda file: text if file == f"{defect.file}.cu" else whole(file))
        with pytest.raises((cuda_emulator.KernelError, AssertionError)):
            defect.check(cupy, dispatch)
