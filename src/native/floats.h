// 16 floats at a time, in the compiler's own vectors: the same operations in the same order on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "activations.h"

// A function compiled once an instruction set; the loader picks one. Without fused multiply-adds (see CMakeLists.txt) all give
// the same bits. Sanitizers cannot run a resolver that early.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DALI_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DALI_CLONES
#endif
#define DALI_INLINE inline __attribute__((always_inline))

namespace dali {

constexpr int LANES = 16;
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
