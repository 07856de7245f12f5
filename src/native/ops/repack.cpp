#include "ops/repack.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "kernels/blocks.h"
#include "kernels/variants.h"

namespace dali {

namespace {

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

// The kernels of a type that goes through floats; none for one that does not.
std::optional<BlockKernels> kernels_of(const std::string& type) {
    const char* names[BLOCK_TYPES] = {"Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "Q5_K", "Q6_K"};
    for (int i = 0; i < BLOCK_TYPES; i++)
        if (type == names[i]) return current_variant().blocks[i];
    return std::nullopt;
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
    if (type == "Q8_0") return tiles(repack_tile<2, 8, 0x80808080>);  // zero point 128
    if (type == "Q4_0") return tiles(repack_tile<2, 4, 0>);
    if (type == "MXFP4") return tiles(repack_tile<1, 4, 0>);
    if (type == "Q4_K") return tiles(repack_q4k_tile);
    if (const auto kernels = kernels_of(type)) return tiles(kernels->to_w8);
    throw std::invalid_argument("no repacking of " + type);
}

void dequantize_blocks(const std::string& type, const uint8_t* raw, size_t count, float* out) {
    if (const auto kernels = kernels_of(type)) return kernels->decode(raw, count, out);
    throw std::invalid_argument("no decoding of " + type);
}

}  // namespace dali
