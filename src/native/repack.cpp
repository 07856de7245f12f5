#include "repack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "blocks.h"

namespace dali {

namespace {

bool is_finite_half(const uint8_t* half) { return (half[1] & 0x7C) != 0x7C; }  // the exponent is not all ones

template <int scale_bytes, int words, uint32_t flipped>
bool repack_tile(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
    constexpr int block_bytes = scale_bytes + 4 * words;
    static constexpr uint8_t zeros[block_bytes] = {};  // rows of padding
    const int blocks = matrix.columns / GROUP;
    bool finite = true;
    for (int block = 0; block < blocks; block++) {
        const uint8_t* from = raw + size_t(block) * block_bytes;
        uint8_t* scales = tile + size_t(block) * TILE_ROWS * scale_bytes;
        uint8_t* quants = tile + matrix.plane_bytes + size_t(block) * LINE * words;
        for (int row = 0; row < TILE_ROWS; row++) {
            const uint8_t* at = row < rows ? from + row * row_bytes : zeros;
            finite &= scale_bytes == 2 ? is_finite_half(at) : at[0] != 0xFF;
            std::memcpy(scales + row * scale_bytes, at, scale_bytes);
            for (int i = 0; i < words; i++) {
                uint32_t word;
                std::memcpy(&word, at + scale_bytes + 4 * i, 4);
                word ^= flipped;
                std::memcpy(quants + i * LINE + 4 * row, &word, 4);
            }
        }
    }
    return finite;
}

// Q4_K: 32 bytes hold two groups, one in the low nibbles; a packed group keeps its column j + 16 in j's high nibble.
bool repack_q4k_tile(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
    constexpr uint32_t LOW = 0x0F0F0F0F;
    constexpr int block_bytes = 144, words = 32;
    static constexpr uint8_t zeros[block_bytes] = {};
    bool finite = true;
    for (int block = 0; block < matrix.columns / block_columns(Format::q4k); block++) {
        uint8_t* scales = tile + size_t(block) * block_scale_bytes(Format::q4k);
        uint8_t* quants = tile + matrix.plane_bytes + size_t(block) * LINE * words;
        for (int row = 0; row < TILE_ROWS; row++) {
            const uint8_t* at = row < rows ? raw + row * row_bytes + size_t(block) * block_bytes : zeros;
            finite &= is_finite_half(at) && is_finite_half(at + 2);
            std::memcpy(scales + 2 * row, at, 2);
            std::memcpy(scales + 32 + 2 * row, at + 2, 2);
            for (int group = 0; group < 8; group++)
                six_bits(at + 4, group, scales[64 + 16 * group + row], scales[192 + 16 * group + row]);
            for (int pair = 0; pair < 4; pair++) {
                for (int i = 0; i < 4; i++) {
                    uint32_t near, far;  // columns 0 to 15 and 16 to 31 of both groups
                    std::memcpy(&near, at + 16 + 32 * pair + 4 * i, 4);
                    std::memcpy(&far, at + 32 + 32 * pair + 4 * i, 4);
                    const uint32_t first = (near & LOW) | (far & LOW) << 4, second = (near >> 4 & LOW) | (far & ~LOW);
                    std::memcpy(quants + (8 * pair + i) * LINE + 4 * row, &first, 4);
                    std::memcpy(quants + (8 * pair + 4 + i) * LINE + 4 * row, &second, 4);
                }
            }
        }
    }
    return finite;
}

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
    for (int i = 0; i < GROUP; i++) largest_bits = std::max(largest_bits, bits[i] & 0x7FFFFFFF);
    if (largest_bits >= 0x7F800000) return false;
    float largest;
    std::memcpy(&largest, &largest_bits, 4);
    const float scale = largest / 127.0f;
    float inverse = 1.0f / scale;
    if (std::isinf(inverse)) inverse = 0.0f;  // a group of zeros, or of denormals
    round_half(values.first, inverse, quants);
    round_half(values.second, inverse, quants + LANES);
    write(&scale, 1, Dtype::f16, scale_at, 0);
    return is_finite_half(scale_at);
}

template <class Type>
DALI_INLINE bool convert_tile(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
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
DALI_INLINE void decode_all(const uint8_t* raw, size_t count, float* out) {
    for (size_t block = 0; block < count; block++)
        for (int group = 0; group < Type::columns / GROUP; group++) {
            Group values;
            Type::decode(raw + block * Type::bytes, group, values);
            std::memcpy(out + block * Type::columns + group * GROUP, &values, sizeof values);
        }
}

DALI_CLONES void decode_q4_0(const uint8_t* raw, size_t count, float* out) { decode_all<Q4_0>(raw, count, out); }
DALI_CLONES void decode_q8_0(const uint8_t* raw, size_t count, float* out) { decode_all<Q8_0>(raw, count, out); }
DALI_CLONES void decode_q4_1(const uint8_t* raw, size_t count, float* out) { decode_all<Q4_1>(raw, count, out); }
DALI_CLONES void decode_q5_0(const uint8_t* raw, size_t count, float* out) { decode_all<Q5_0>(raw, count, out); }
DALI_CLONES void decode_q5_1(const uint8_t* raw, size_t count, float* out) { decode_all<Q5_1>(raw, count, out); }
DALI_CLONES void decode_q5_k(const uint8_t* raw, size_t count, float* out) { decode_all<Q5_K>(raw, count, out); }
DALI_CLONES void decode_q6_k(const uint8_t* raw, size_t count, float* out) { decode_all<Q6_K>(raw, count, out); }

enum class Lossy { q4_1, q5_0, q5_1, q5_k, q6_k };

DALI_CLONES bool convert_tile(Lossy type, const Matrix& matrix, const uint8_t* raw, size_t row_bytes, int rows, uint8_t* tile) {
    switch (type) {
        case Lossy::q4_1: return convert_tile<Q4_1>(matrix, raw, row_bytes, rows, tile);
        case Lossy::q5_0: return convert_tile<Q5_0>(matrix, raw, row_bytes, rows, tile);
        case Lossy::q5_1: return convert_tile<Q5_1>(matrix, raw, row_bytes, rows, tile);
        case Lossy::q5_k: return convert_tile<Q5_K>(matrix, raw, row_bytes, rows, tile);
        default: return convert_tile<Q6_K>(matrix, raw, row_bytes, rows, tile);
    }
}

}  // namespace

bool repack(const Matrix& matrix, const std::string& type, const uint8_t* raw, size_t row_bytes, uint8_t* packed) {
    const auto tiles = [&](auto repack_tile) {
        bool finite = true;
        for (int tile = 0; tile < matrix.tiles(); tile++) {
            const int rows = std::min(TILE_ROWS, matrix.rows - tile * TILE_ROWS);
            finite &= repack_tile(matrix, raw + size_t(tile) * TILE_ROWS * row_bytes, row_bytes, rows, packed + tile * matrix.tile_bytes);
        }
        return finite;
    };
    const auto convert = [&](Lossy type) { return tiles([type](auto... tile) { return convert_tile(type, tile...); }); };
    if (type == "Q8_0") return tiles(repack_tile<2, 8, 0x80808080>);  // zero point 128
    if (type == "Q4_0") return tiles(repack_tile<2, 4, 0>);
    if (type == "MXFP4") return tiles(repack_tile<1, 4, 0>);
    if (type == "Q4_K") return tiles(repack_q4k_tile);
    if (type == "Q4_1") return convert(Lossy::q4_1);
    if (type == "Q5_0") return convert(Lossy::q5_0);
    if (type == "Q5_1") return convert(Lossy::q5_1);
    if (type == "Q5_K") return convert(Lossy::q5_k);
    if (type == "Q6_K") return convert(Lossy::q6_k);
    throw std::invalid_argument("no repacking of " + type);
}

void decode_blocks(const std::string& type, const uint8_t* raw, size_t count, float* out) {
    if (type == "Q4_0") return decode_q4_0(raw, count, out);
    if (type == "Q8_0") return decode_q8_0(raw, count, out);
    if (type == "Q4_1") return decode_q4_1(raw, count, out);
    if (type == "Q5_0") return decode_q5_0(raw, count, out);
    if (type == "Q5_1") return decode_q5_1(raw, count, out);
    if (type == "Q5_K") return decode_q5_k(raw, count, out);
    if (type == "Q6_K") return decode_q6_k(raw, count, out);
    throw std::invalid_argument("no decoding of " + type);
}

}  // namespace dali
