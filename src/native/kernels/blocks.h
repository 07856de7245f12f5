// GGUF's blocks, 32 columns at a time, as floats: the same operations as store/gguf/blocks.py. And those floats as w8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/variant.h"
#include "lanes/floats.h"

namespace dali {

DALI_INLINE float half_at(const uint8_t* from) {
    float value;
    read_row(from, Dtype::f16, 0, 1, &value);
    return value;
}

DALI_INLINE bool is_finite_half(const uint8_t* half) { return (half[1] & 0x7C) != 0x7C; }  // the exponent is not all ones

// Scale and minimum of group `group` in the 12 bytes of Q4_K and Q5_K.
DALI_INLINE void six_bits(const uint8_t* scales, int group, uint8_t& scale, uint8_t& minimum) {
    if (group < 4) {
        scale = scales[group] & 63;
        minimum = scales[group + 4] & 63;
    } else {
        scale = uint8_t((scales[group + 4] & 15) | (scales[group - 4] >> 6) << 4);
        minimum = uint8_t((scales[group + 4] >> 4) | (scales[group] >> 6) << 4);
    }
}

typedef uint8_t Bytes16 __attribute__((vector_size(16)));

DALI_INLINE void load_bytes(const uint8_t* from, Ints16& to) {
    Bytes16 bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    to = __builtin_convertvector(bytes, Ints16);
}

// 32 columns of a row.
struct Group {
    Floats16 first, second;
};

DALI_INLINE void scale(const Ints16& first, const Ints16& second, float a, float b, Group& out) {
    out.first = __builtin_convertvector(first, Floats16) * a;
    out.second = __builtin_convertvector(second, Floats16) * b;
}

DALI_INLINE void nibbles(const uint8_t* qs, Ints16& low, Ints16& high) {
    load_bytes(qs, low);
    high = low >> 4;
    low &= 15;
}

DALI_INLINE void add_fifth_bits(const uint8_t* qh, Ints16& first, Ints16& second) {
    constexpr Ints16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    uint16_t bits[2];
    std::memcpy(bits, qh, 4);
    first |= (int32_t(bits[0]) >> lanes & 1) << 4;
    second |= (int32_t(bits[1]) >> lanes & 1) << 4;
}

// A block type: the columns and bytes of a block, and what its group `group` of 32 columns stands for.
struct Q4_0 {  // d, qs
    static constexpr int columns = 32, bytes = 18;
    DALI_INLINE static void decode(const uint8_t* block, int, Group& out) {
        const float d = half_at(block);
        Ints16 first, second;
        nibbles(block + 2, first, second);
        scale(first - 8, second - 8, d, d, out);
    }
};

struct Q8_0 {  // d, qs
    static constexpr int columns = 32, bytes = 34;
    DALI_INLINE static void decode(const uint8_t* block, int, Group& out) {
        const float d = half_at(block);
        Ints16 first, second;
        load_bytes(block + 2, first);
        load_bytes(block + 18, second);
        scale((first ^ 128) - 128, (second ^ 128) - 128, d, d, out);  // signed
    }
};

struct Q4_1 {  // d, m, qs
    static constexpr int columns = 32, bytes = 20;
    DALI_INLINE static void decode(const uint8_t* block, int, Group& out) {
        const float d = half_at(block), m = half_at(block + 2);
        Ints16 first, second;
        nibbles(block + 4, first, second);
        scale(first, second, d, d, out);
        out.first += m;
        out.second += m;
    }
};

struct Q5_0 {  // d, qh, qs
    static constexpr int columns = 32, bytes = 22;
    DALI_INLINE static void decode(const uint8_t* block, int, Group& out) {
        const float d = half_at(block);
        Ints16 first, second;
        nibbles(block + 6, first, second);
        add_fifth_bits(block + 2, first, second);
        scale(first - 16, second - 16, d, d, out);
    }
};

struct Q5_1 {  // d, m, qh, qs
    static constexpr int columns = 32, bytes = 24;
    DALI_INLINE static void decode(const uint8_t* block, int, Group& out) {
        const float d = half_at(block), m = half_at(block + 2);
        Ints16 first, second;
        nibbles(block + 8, first, second);
        add_fifth_bits(block + 4, first, second);
        scale(first, second, d, d, out);
        out.first += m;
        out.second += m;
    }
};

struct Q5_K {  // d, dmin, scales [12], qh [32], qs [128]: 32 bytes hold two groups, the first in low nibbles
    static constexpr int columns = 256, bytes = 176;
    DALI_INLINE static void decode(const uint8_t* block, int group, Group& out) {
        uint8_t times, minimum;
        six_bits(block + 4, group, times, minimum);
        const float step = half_at(block) * float(times), taken = half_at(block + 2) * float(minimum);
        const uint8_t *qh = block + 16, *qs = block + 48 + 32 * (group / 2);
        const int shift = 4 * (group % 2);
        Ints16 first, second, fifth, other_fifth;
        load_bytes(qs, first);
        load_bytes(qs + 16, second);
        load_bytes(qh, fifth);
        load_bytes(qh + 16, other_fifth);
        first = (first >> shift & 15) | (fifth >> group & 1) << 4;
        second = (second >> shift & 15) | (other_fifth >> group & 1) << 4;
        scale(first, second, step, step, out);
        out.first -= taken;
        out.second -= taken;
    }
};

struct Q6_K {  // ql [128], qh [64], scales [16], d; a half block has four groups, two of them in low nibbles
    static constexpr int columns = 256, bytes = 210;
    DALI_INLINE static void decode(const uint8_t* block, int group, Group& out) {
        const int half = group / 4, quarter = group % 4;
        const uint8_t *ql = block + 64 * half + 32 * (quarter % 2), *qh = block + 128 + 32 * half;
        const int low_shift = 4 * (quarter / 2), high_shift = 2 * quarter;
        Ints16 first, second, high, other_high;
        load_bytes(ql, first);
        load_bytes(ql + 16, second);
        load_bytes(qh, high);
        load_bytes(qh + 16, other_high);
        first = ((first >> low_shift & 15) | (high >> high_shift & 3) << 4) - 32;
        second = ((second >> low_shift & 15) | (other_high >> high_shift & 3) << 4) - 32;
        const float d = half_at(block + 208);
        const uint8_t* scales = block + 192 + 2 * group;
        scale(first, second, d * float(int8_t(scales[0])), d * float(int8_t(scales[1])), out);
    }
};

DALI_INLINE void round_half(const Floats16& values, float inverse, uint8_t* to) {
    const Floats16 scaled = values * inverse;
    const Ints16 whole = __builtin_convertvector(scaled, Ints16);  // truncates
    const Floats16 rest = (scaled - __builtin_convertvector(whole, Floats16)) * 2.0f;
    const Bytes16 bytes = __builtin_convertvector(whole + __builtin_convertvector(rest, Ints16) + 128, Bytes16);
    std::memcpy(to, &bytes, sizeof bytes);
}

// 32 values as w8: the largest magnitude becomes 127, halves round away from zero. False for values that are not finite, and a
// scale that a half cannot hold.
DALI_INLINE bool quantize(const Group& values, uint8_t* quants, uint8_t* scale_at) {
    int32_t bits[GROUP], largest_bits = 0;
    std::memcpy(bits, &values, sizeof bits);
    for (int i = 0; i < GROUP; i++) {
        const int32_t magnitude = bits[i] & 0x7FFFFFFF;
        largest_bits = magnitude > largest_bits ? magnitude : largest_bits;
    }
    if (largest_bits >= 0x7F800000) return false;
    float largest;
    std::memcpy(&largest, &largest_bits, 4);
    const float scale = largest / 127.0f;
    float inverse = 1.0f / scale;
    if (__builtin_isinf(inverse)) inverse = 0.0f;  // a group of zeros, or of denormals
    round_half(values.first, inverse, quants);
    round_half(values.second, inverse, quants + LANES);
    write(&scale, 1, Dtype::f16, scale_at, 0);
    return is_finite_half(scale_at);
}

template <class V>
struct BlockKernelsOf {
    template <class Type>
    static bool to_w8(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
        constexpr int groups = Type::columns / GROUP;
        for (int group = 0; group < matrix.columns / GROUP; group++) {
            const uint8_t* block = raw + size_t(group / groups) * Type::bytes;
            uint8_t* lines = tile + matrix.plane_bytes + size_t(group) * LINE * 8;
            for (int row = 0; row < TILE_ROWS; row++) {
                Group values{};  // rows of padding
                if (row < rows) Type::decode(block + row * row_bytes, group % groups, values);
                uint8_t quants[GROUP];
                if (!quantize(values, quants, tile + (size_t(group) * TILE_ROWS + row) * 2)) return false;
                for (int i = 0; i < 8; i++) std::memcpy(lines + i * LINE + 4 * row, quants + 4 * i, 4);
            }
        }
        return true;
    }

    template <class Type>
    static void decode(const uint8_t* raw, size_t count, float* out) {
        for (size_t block = 0; block < count; block++)
            for (int group = 0; group < Type::columns / GROUP; group++) {
                Group values;
                Type::decode(raw + block * Type::bytes, group, values);
                std::memcpy(out + block * Type::columns + group * GROUP, &values, sizeof values);
            }
    }

    template <class Type, bool converted>
    static void put(Variant& variant, BlockType type) {
        variant.blocks[int(type)] = {decode<Type>, converted ? to_w8<Type> : nullptr};
    }

    // The quants of Q4_0 and Q8_0 move into tiles as they are (ops/repack.cpp).
    static void put_into(Variant& variant) {
        put<Q4_0, false>(variant, BlockType::q4_0);
        put<Q8_0, false>(variant, BlockType::q8_0);
        put<Q4_1, true>(variant, BlockType::q4_1);
        put<Q5_0, true>(variant, BlockType::q5_0);
        put<Q5_1, true>(variant, BlockType::q5_1);
        put<Q5_K, true>(variant, BlockType::q5_k);
        put<Q6_K, true>(variant, BlockType::q6_k);
    }
};

}  // namespace dali
