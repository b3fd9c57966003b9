// Products of bfloat16 matrices by tiles (AMX): see `Kernels.product` in rollout/kernels.py.
//
// Weights are laid out once, in tiles, so that a decoding step reads them one after the other; sums are in float, and what
// follows a product (bias, silu, another matrix to add or multiply by) is done while its results are at hand. Every row
// is added up in the same order, however many rows there are.

#ifdef __AMX_BF16__

#include "numbers.h"

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

namespace {

constexpr int64_t SIDE = 16, DEPTH = 32, BLOCK = 2 * SIDE;  // a tile of results; what one step adds up; 2 x 2 tiles

struct alignas(64) Palette {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Add up a block of results from BLOCK rows of x and two columns of tiles.
void add_up(float* block, const Short* x, int64_t size, const Short* left, const Short* right) {
    const Short* lower = x + SIDE * size;
    _tile_zero(0);  // macros, so not in a comma expression
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < size; k += DEPTH) {
        _tile_loadd(4, x + k, size * sizeof(Short));
        _tile_loadd(5, lower + k, size * sizeof(Short));
        _tile_loadd(6, left + k * SIDE, 64);
        _tile_loadd(7, right + k * SIDE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, block, BLOCK * sizeof(float));
    _tile_stored(1, block + SIDE, BLOCK * sizeof(float));
    _tile_stored(2, block + SIDE * BLOCK, BLOCK * sizeof(float));
    _tile_stored(3, block + SIDE * BLOCK + SIDE, BLOCK * sizeof(float));
}

// Multiply x (rows, size) with a weight (columns, size) in tiles. finish: gets `count` results of a row, from a column on.
template <class Finish>
void multiply(const Short* x, const Short* weight, int64_t rows, int64_t size, int64_t columns, int threads,
              const Finish& finish) {
    const int64_t whole = rows - rows % BLOCK, blocks = (columns + BLOCK - 1) / BLOCK;
    std::vector<Short> last(rows == whole ? 0 : BLOCK * size, Short{0});  // the last rows, zeros behind them
    if (rows != whole) std::copy_n(x + whole * size, (rows - whole) * size, last.begin());
#pragma omp parallel num_threads(threads)
    {
        Palette palette;
        for (int i = 0; i < 8; i++) palette.bytes[i] = 64, palette.rows[i] = SIDE;
        _tile_loadconfig(&palette);
        alignas(64) float block[BLOCK * BLOCK];
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            const Short* tiles = weight + b * BLOCK * size;
            const int64_t column = b * BLOCK, count = std::min(BLOCK, columns - column);
            for (int64_t row = 0; row < rows; row += BLOCK) {
                add_up(block, row < whole ? x + row * size : last.data(), size, tiles, tiles + SIDE * size);
                for (int64_t r = 0; r < std::min(BLOCK, rows - row); r++)
                    finish(block + r * BLOCK, row + r, column, count);
            }
        }
        _tile_release();
    }
}

enum Then { NOTHING, SILU, TIMES, PLUS };

inline float silu(float y) {
    const float e = exp_of(-std::fabs(y));
    return y * (y >= 0 ? 1 : e) / (1 + e);
}

template <int THEN, class T>
void product(T* out, const Short* x, const Short* weight, const float* bias, const Short* other, int64_t rows,
             int64_t size, int64_t columns, int threads) {
    multiply(x, weight, rows, size, columns, threads,
             [=](const float* sums, int64_t row, int64_t column, int64_t count) {
                 T* to = out + row * columns + column;
                 const Short* with = THEN >= TIMES ? other + row * columns + column : nullptr;
#pragma omp simd
                 for (int64_t i = 0; i < count; i++) {
                     float y = bias ? sums[i] + bias[column + i] : sums[i];
                     if (THEN == SILU) y = silu(y);
                     if (THEN == TIMES) y *= wide(with[i]);
                     if (THEN == PLUS) y += wide(with[i]);
                     put(to[i], y);
                 }
             });
}

template <class T>
void product(void* out, const void* x, const void* weight, const void* bias, const void* other, int then, int64_t rows,
             int64_t size, int64_t columns, int threads) {
    auto call = then == SILU ? product<SILU, T> : then == TIMES ? product<TIMES, T>
              : then == PLUS ? product<PLUS, T> : product<NOTHING, T>;
    call((T*)out, (const Short*)x, (const Short*)weight, (const float*)bias, (const Short*)other, rows, size, columns,
         threads);
}

}  // namespace

extern "C" int may_use_tiles() {  // Linux grants their registers to a process on request: ARCH_REQ_XCOMP_PERM, 18
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

extern "C" void product_float32(void* out, const void* x, const void* weight, const void* bias, const void* other,
                                int then, int64_t rows, int64_t size, int64_t columns, int threads) {
    product<float>(out, x, weight, bias, other, then, rows, size, columns, threads);
}

extern "C" void product_bfloat16(void* out, const void* x, const void* weight, const void* bias, const void* other,
                                 int then, int64_t rows, int64_t size, int64_t columns, int threads) {
    product<Short>(out, x, weight, bias, other, then, rows, size, columns, threads);
}

#endif
