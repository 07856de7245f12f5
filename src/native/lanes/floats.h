// 16 floats at a time, in the compiler's own vectors: the same operations in the same order on every instruction set. Without fused
// multiply-adds (see CMakeLists.txt) all give the same bits.
#pragma once

#include <cstdint>
#include <cstring>

// Never a function of its own: kernels/kernels.h says why.
#define DALI_INLINE inline __attribute__((always_inline))

namespace dali {

constexpr int LANES = 16;
// `count` rounded up to whole vectors.
DALI_INLINE int padded(int64_t count) { return int((count + LANES - 1) / LANES * LANES); }

typedef float Floats16 __attribute__((vector_size(64)));
typedef int32_t Ints16 __attribute__((vector_size(64)));
typedef uint16_t Halves16 __attribute__((vector_size(32)));

// By reference: vectors of this size have no calling convention of their own on older instruction sets.
DALI_INLINE void load(const float* from, Floats16& to) { std::memcpy(&to, from, sizeof to); }
DALI_INLINE void load_bf16(const void* from, Floats16& to) {
    Halves16 halves;
    std::memcpy(&halves, from, sizeof halves);
    const Ints16 bits = __builtin_convertvector(halves, Ints16) << 16;
    std::memcpy(&to, &bits, sizeof to);
}
DALI_INLINE void store(const Floats16& from, float* to) { std::memcpy(to, &from, sizeof from); }

DALI_INLINE float sum(const Floats16& values) {
    float total[LANES];
    store(values, total);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) total[i] += total[i + half];
    return total[0];
}

DALI_INLINE void load_row(const float* from, Floats16& to) { load(from, to); }
DALI_INLINE void load_row(const uint16_t* from, Floats16& to) { load_bf16(from, to); }
DALI_INLINE float one(const float* from) { return *from; }
DALI_INLINE float one(const uint16_t* from) {
    const uint32_t bits = uint32_t(*from) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
// The first `count` lanes, fewer than LANES; zeros in the others.
template <class T>
DALI_INLINE void load_row(const T* from, int count, Floats16& to) {
    float values[LANES] = {};
    for (int i = 0; i < count; i++) values[i] = one(from + i);
    load(values, to);
}

// Lanes of a then b, by number.
#ifdef __clang__
#define DALI_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DALI_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Ints16{__VA_ARGS__})
#endif

// The sum of each of 16 vectors.
DALI_INLINE void sums(Floats16* v, Floats16& out) {
    for (int i = 0; i < 8; i++)
        v[i] = DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    for (int i = 0; i < 4; i++)
        v[i] = DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
               DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    for (int i = 0; i < 2; i++)
        v[i] = DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
               DALI_SHUFFLE(v[2 * i], v[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    out = DALI_SHUFFLE(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
          DALI_SHUFFLE(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// Within 3 units in the last place of e^x for x up to 88; 0 below -87; NaN stays.
DALI_INLINE void exp(Floats16& x) {
    constexpr float least = -87.0f, whole = 12582912.0f;  // to add and take away rounds to a whole number
    const Ints16 kept = ~(x < least);
    const Floats16 from = x < least ? Floats16{} + least : x;
    const Floats16 n = (from * 1.44269504f + whole) - whole;
    const Floats16 r = (from - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats16 p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const Ints16 power = (__builtin_convertvector(n, Ints16) + 127) << 23;
    Floats16 scale;
    std::memcpy(&scale, &power, sizeof scale);
    p *= scale;
    Ints16 bits;
    std::memcpy(&bits, &p, sizeof bits);
    bits &= kept;
    std::memcpy(&x, &bits, sizeof x);
}

// The same of `count` values, in place, padded to whole vectors; infinity above 88.
DALI_INLINE void exp(float* values, int count) {
    for (int i = 0; i < count; i += LANES) {
        Floats16 x, e;
        load(values + i, x);
        e = x;
        exp(e);
        e = x > 88.0f ? Floats16{} + __builtin_inff() : e;
        store(e, values + i);
    }
}

// log(1 + e^x), within 4 units in the last place; x itself above 20, as torch has it.
DALI_INLINE void softplus(Floats16& x) {
    const Floats16 negative = -x, size = x > negative ? negative : x;  // -|x|
    Floats16 power = size;
    exp(power);
    // log(1 + p) = 2 atanh(p / (2 + p)), of at most 1/3.
    const Floats16 s = power / (power + 2.0f), square = s * s;
    Floats16 series = square * (1.0f / 17) + 1.0f / 15;
    series = series * square + 1.0f / 13;
    series = series * square + 1.0f / 11;
    series = series * square + 1.0f / 9;
    series = series * square + 1.0f / 7;
    series = series * square + 1.0f / 5;
    series = series * square + 1.0f / 3;
    series = series * square + 1.0f;
    const Floats16 above = x > 0.0f ? x : Floats16{};
    const Floats16 log = above + (s + s) * series;
    x = x > 20.0f ? x : log;
}

template <class T>
DALI_INLINE float dot(const T* row, const float* query, int width) {
    Floats16 total{}, other{};
    int i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        Floats16 a, b, x, y;
        load_row(row + i, a);
        load(query + i, x);
        load_row(row + i + LANES, b);
        load(query + i + LANES, y);
        total += a * x;
        other += b * y;
    }
    total += other;
    float result = sum(total);
    for (; i < width; i++) result += one(row + i) * query[i];
    return result;
}

}  // namespace dali
