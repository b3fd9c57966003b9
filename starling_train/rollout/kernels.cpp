// What a lean decoder does between its matrix products, and how it draws: see rollout/kernels.py.
//
// Numbers are kept as transformers' modules keep them: computed in float, rounded to the model's type (float or
// bfloat16) where a module's result is. A row's result depends on nothing but the row: one thread computes it whole.

#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

template <class T>
void norm(T* out, const T* x, const T* weight, int64_t size, float epsilon) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += wide(x[i]) * wide(x[i]);
    float inverse = 1 / std::sqrt(squares / size + epsilon);
#pragma omp simd
    for (int64_t i = 0; i < size; i++) put(out[i], wide(weight[i]) * as<T>(wide(x[i]) * inverse));
}

// Turn a head by its position's angles, as `apply_rotary_pos_emb` does.
template <class T>
void turn(T* out, const T* x, const T* cos, const T* sin, int64_t size) {
    int64_t half = size / 2;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float first = wide(x[i]), second = wide(x[i + half]);
        put(out[i], as<T>(first * wide(cos[i])) + as<T>(-second * wide(sin[i])));
        put(out[i + half], as<T>(second * wide(cos[i + half])) + as<T>(first * wide(sin[i + half])));
    }
}

typedef float Floats __attribute__((vector_size(64)));  // 16; compilers split them where a CPU has shorter ones
typedef int32_t Words __attribute__((vector_size(64)));
typedef uint16_t Shorts __attribute__((vector_size(32)));

constexpr int64_t AHEAD = 12;  // keys that are fetched before they are read

inline Floats load(const float* from) {
    Floats x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline Floats load(const Short* from) {
    Shorts bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Floats)(__builtin_convertvector(bits, Words) << 16);
}

inline float total_of(Floats x) {
    typedef float Eight __attribute__((vector_size(32)));
    typedef float Four __attribute__((vector_size(16)));
    Eight half[2];
    std::memcpy(half, &x, sizeof x);
    half[0] += half[1];
    Four quarter[2];
    std::memcpy(quarter, half, sizeof half[0]);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

// Make weights that add up to 1 of scores, in place.
inline void soften(float* weights, int64_t count) {
    float most = -INFINITY, total = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < count; j++) most = std::max(most, weights[j]);
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < count; j++) total += weights[j] = exp_of(weights[j] - most);
    const float inverse = 1 / total;
#pragma omp simd
    for (int64_t j = 0; j < count; j++) weights[j] *= inverse;
}

// Mix the values of `count` positions for QUERIES heads that share them, of 16 PARTS numbers each, in registers.
// states: the queries, and then what was mixed. weights: room for QUERIES x count numbers.
template <class T, int PARTS, int QUERIES>
void mix(T* states, const T* keys, const T* values, int64_t count, float scale, float* weights) {
    constexpr int size = 16 * PARTS;
    Floats query[QUERIES][PARTS], sum[QUERIES][PARTS];
    for (int h = 0; h < QUERIES; h++)
        for (int p = 0; p < PARTS; p++) query[h][p] = load(states + h * size + 16 * p) * scale, sum[h][p] = Floats{};
    for (int64_t j = 0; j < count; j++) {
        Floats product[QUERIES] = {};
        for (size_t at = 0; at < size * sizeof(T); at += 64) {  // values come while keys are read; harmless behind the end
            __builtin_prefetch((const char*)(keys + (j + AHEAD) * size) + at);
            __builtin_prefetch((const char*)(values + j * size) + at);
        }
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++) {
            const Floats key = load(keys + j * size + 16 * p);
#pragma GCC unroll 4
            for (int h = 0; h < QUERIES; h++) product[h] += query[h][p] * key;
        }
        for (int h = 0; h < QUERIES; h++) weights[h * count + j] = total_of(product[h]);
    }
    for (int h = 0; h < QUERIES; h++) soften(weights + h * count, count);
    for (int64_t j = 0; j < count; j++)
#pragma GCC unroll 8
        for (int p = 0; p < PARTS; p++) {
            const Floats value = load(values + j * size + 16 * p);
#pragma GCC unroll 4
            for (int h = 0; h < QUERIES; h++) sum[h][p] += weights[h * count + j] * value;
        }
    for (int h = 0; h < QUERIES; h++)
        for (int p = 0; p < PARTS; p++) {
            float part[16];
            std::memcpy(part, &sum[h][p], sizeof part);
#pragma omp simd
            for (int i = 0; i < 16; i++) put(states[h * size + 16 * p + i], part[i]);
        }
}

// The same for one head of any size up to 512.
template <class T>
void mix_any(T* state, const T* keys, const T* values, int64_t count, int64_t size, float scale, float* weights) {
    float query[512], sum[512];
    for (int64_t i = 0; i < size; i++) query[i] = wide(state[i]) * scale, sum[i] = 0;
    for (int64_t j = 0; j < count; j++) {
        float product = 0;
#pragma omp simd reduction(+ : product)
        for (int64_t i = 0; i < size; i++) product += query[i] * wide(keys[j * size + i]);
        weights[j] = product;
    }
    soften(weights, count);
    for (int64_t j = 0; j < count; j++)
#pragma omp simd
        for (int64_t i = 0; i < size; i++) sum[i] += weights[j] * wide(values[j * size + i]);
    for (int64_t i = 0; i < size; i++) put(state[i], sum[i]);
}

template <class T>
void mix_group(T* states, int64_t group, const T* keys, const T* values, int64_t count, int64_t size, float scale,
               float* weights) {
    for (int64_t h = 0; h < group;) {
        T* from = states + h * size;
        const int64_t left = group - h;
        if (size == 64 && left >= 4) mix<T, 4, 4>(from, keys, values, count, scale, weights), h += 4;
        else if (size == 64 && left == 3) mix<T, 4, 3>(from, keys, values, count, scale, weights), h += 3;
        else if (size == 64 && left == 2) mix<T, 4, 2>(from, keys, values, count, scale, weights), h += 2;
        else if (size == 64) mix<T, 4, 1>(from, keys, values, count, scale, weights), h += 1;
        else if (size == 128 && left >= 2) mix<T, 8, 2>(from, keys, values, count, scale, weights), h += 2;
        else if (size == 128) mix<T, 8, 1>(from, keys, values, count, scale, weights), h += 1;
        else mix_any(from, keys, values, count, size, scale, weights), h += 1;
    }
}

struct Attention {  // of one layer; sizes in numbers, not bytes
    int64_t rows, heads, shared, size, capacity, window;  // shared: heads of keys and values; window: 0 = all
    float scale, epsilon;
};

template <class T>
void attend(T* out, const T* projected, const T* query_norm, const T* key_norm, const T* cos, const T* sin, T* keys,
            T* values, const int64_t* positions, const Attention& a, int threads) {
    const int64_t group = a.heads / a.shared, size = a.size, width = (a.heads + 2 * a.shared) * size;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> weights(4 * a.capacity);
        std::vector<T> head(size);
#pragma omp for schedule(dynamic, 4)
        for (int64_t task = 0; task < a.rows * a.shared; task++) {
            const int64_t row = task / a.shared, which = task % a.shared, position = positions[row];
            const T *mine = projected + row * width, *c = cos + row * size, *s = sin + row * size;
            const int64_t begin = a.window && position >= a.window ? position - a.window + 1 : 0;
            T* all_keys = keys + task * a.capacity * size;
            T* all_values = values + task * a.capacity * size;
            auto turned = [&](T* to, const T* from, const T* weight) {
                if (weight) norm(head.data(), from, weight, size, a.epsilon);
                turn(to, weight ? head.data() : from, c, s, size);
            };
            turned(all_keys + position * size, mine + (a.heads + which) * size, key_norm);
            std::copy_n(mine + (a.heads + a.shared + which) * size, size, all_values + position * size);
            T* to = out + (row * a.heads + which * group) * size;
            for (int64_t h = 0; h < group; h++) turned(to + h * size, mine + (which * group + h) * size, query_norm);
            mix_group(to, group, all_keys + begin * size, all_values + begin * size, position + 1 - begin, size,
                      a.scale, weights.data());
        }
    }
}

constexpr int64_t BLOCK = 512;  // tokens whose probabilities are added up before one of them is looked for

template <class T>
int64_t drawn(const T* logits, int64_t size, float uniform, float factor, std::vector<double>& sums) {
    float most = -INFINITY;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < size; i++) most = std::max(most, wide(logits[i]));
    auto weight = [&](int64_t i) {
        float below = (wide(logits[i]) - most) * factor;
        return below > -87.0f ? exp_of(below) : 0.0f;
    };
    double total = 0;
    const int64_t blocks = (size + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        float sum = 0;
        const int64_t end = std::min(size, (b + 1) * BLOCK);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = b * BLOCK; i < end; i++) sum += weight(i);
        total += sums[b] = sum;
    }
    const double target = total * uniform;
    double passed = 0;
    int64_t b = 0, last = size - 1;
    while (b + 1 < blocks && passed + sums[b] <= target) passed += sums[b++];
    for (int64_t i = b * BLOCK; i < std::min(size, (b + 1) * BLOCK); i++) {
        const float one = weight(i);
        if (!(one > 0)) continue;
        last = i;  // should rounding leave the target behind all tokens of the block
        if ((passed += one) > target) break;
    }
    return last;
}

template <class T>
void draw(int64_t* tokens, const T* logits, const float* uniforms, int64_t rows, int64_t size, float factor,
          int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<double> sums((size + BLOCK - 1) / BLOCK);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row++)
            tokens[row] = drawn(logits + row * size, size, uniforms[row], factor, sums);
    }
}

template <class T>
void norms(T* out, const T* x, const T* weight, int64_t rows, int64_t size, float epsilon, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; row++) norm(out + row * size, x + row * size, weight, size, epsilon);
}

}  // namespace

#define KERNELS(NAME, T)                                                                                              \
    extern "C" void norm_##NAME(void* out, const void* x, const void* weight, int64_t rows, int64_t size,            \
                                float epsilon, int threads) {                                                         \
        norms((T*)out, (const T*)x, (const T*)weight, rows, size, epsilon, threads);                                  \
    }                                                                                                                 \
    extern "C" void draw_##NAME(void* tokens, const void* logits, const void* uniforms, int64_t rows, int64_t size,  \
                                float factor, int threads) {                                                          \
        draw((int64_t*)tokens, (const T*)logits, (const float*)uniforms, rows, size, factor, threads);                \
    }                                                                                                                 \
    extern "C" void attend_##NAME(void* out, const void* projected, const void* query_norm, const void* key_norm,    \
                                  const void* cos, const void* sin, void* keys, void* values, const void* positions, \
                                  int64_t rows, int64_t heads, int64_t shared, int64_t size, int64_t capacity,       \
                                  int64_t window, float scale, float epsilon, int threads) {                          \
        Attention a{rows, heads, shared, size, capacity, window, scale, epsilon};                                     \
        attend((T*)out, (const T*)projected, (const T*)query_norm, (const T*)key_norm, (const T*)cos, (const T*)sin, \
               (T*)keys, (T*)values, (const int64_t*)positions, a, threads);                                          \
    }

KERNELS(float32, float)
KERNELS(bfloat16, Short)
