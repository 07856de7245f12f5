#include "repack.h"

#include <algorithm>
#include <cstring>

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
            if constexpr (scale_bytes == 2) {
                finite &= (at[1] & 0x7C) != 0x7C;  // a half's exponent is all ones
            } else {
                finite &= at[0] != 0xFF;
            }
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

}  // namespace

bool repack(const Matrix& matrix, const uint8_t* raw, size_t row_bytes, uint8_t* packed) {
    bool finite = true;
    for (int tile = 0; tile < matrix.tiles(); tile++) {
        const uint8_t* from = raw + size_t(tile) * TILE_ROWS * row_bytes;
        uint8_t* to = packed + tile * matrix.tile_bytes;
        const int rows = std::min(TILE_ROWS, matrix.rows - tile * TILE_ROWS);
        switch (matrix.format) {
            case Format::w8: finite &= repack_tile<2, 8, 0x80808080>(matrix, from, row_bytes, rows, to); break;  // zero point 128
            case Format::w4: finite &= repack_tile<2, 4, 0>(matrix, from, row_bytes, rows, to); break;
            default: finite &= repack_tile<1, 4, 0>(matrix, from, row_bytes, rows, to);
        }
    }
    return finite;
}

}  // namespace dali
