// Numbers of a model's type in memory, float or bfloat16, which are computed with in float.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct Short {  // bfloat16
    uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(Short x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void put(float& to, float x) { to = x; }

inline void put(Short& to, float x) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : uint16_t(rounded);
}

template <class T>
inline float as(float x) {
    T y;
    put(y, x);
    return wide(y);
}

inline float exp_of(float x) {  // x <= 0; relative error below 3e-7
    x = std::max(x, -87.0f);
    float n = std::nearbyint(x * 1.44269504f);
    float y = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // log 2 in two parts
    float sum = 1 + y * (1 + y * (1 / 2.f + y * (1 / 6.f + y * (1 / 24.f + y * (1 / 120.f + y * (1 / 720.f))))));
    int32_t bits = (int32_t(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return sum * power;
}

}  // namespace
