// The packed byte layout of src/dali/kernels/formats.py, as the kernels read it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dali {

constexpr int TILE_ROWS = 16;
constexpr int GROUP = 32;  // columns whose products are summed in integers
constexpr int LINE = 64;   // bytes: 4 of each of a tile's rows

enum class Format : int { f32, f16, bf16, w8, w4, mxfp4, q4k };
constexpr int FORMATS = 7;

constexpr bool is_quantized(Format format) { return format >= Format::w8; }
constexpr int block_columns(Format format) { return format == Format::q4k ? 256 : GROUP; }

// Bytes of a tile's scale plane that one block of columns takes.
constexpr int block_scale_bytes(Format format) {
    switch (format) {
        case Format::w8:
        case Format::w4: return 2 * TILE_ROWS;
        case Format::mxfp4: return TILE_ROWS;
        case Format::q4k: return (2 + 2 + 8 + 8) * TILE_ROWS;
        default: return 0;
    }
}

constexpr int bits(Format format) {
    switch (format) {
        case Format::f32: return 32;
        case Format::f16:
        case Format::bf16: return 16;
        case Format::w8: return 8;
        default: return 4;
    }
}

// What unsigned quants stand above their value by: the kernels multiply them as they are and take this many times the
// sum of the activations off. mxfp4's codes are looked up as value + 12; q4k's minimum is a float, taken off as such.
constexpr int zero_point(Format format) {
    switch (format) {
        case Format::w8: return 128;
        case Format::w4: return 8;
        case Format::mxfp4: return 12;
        default: return 0;
    }
}

constexpr size_t round_up(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// One packed matrix: rows x columns, in tiles of 16 rows.
struct Matrix {
    Format format = Format::f32;
    int rows = 0;
    int columns = 0;  // padded to whole blocks
    size_t plane_bytes = 0;
    size_t tile_bytes = 0;

    Matrix() = default;
    Matrix(Format format, int rows, int unpadded) : format(format), rows(rows) {
        columns = static_cast<int>(round_up(unpadded, block_columns(format)));
        plane_bytes = round_up(size_t(columns / block_columns(format)) * block_scale_bytes(format), 128);
        tile_bytes = plane_bytes + size_t(TILE_ROWS) * columns * bits(format) / 8;
    }

    int tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    size_t bytes() const { return tiles() * tile_bytes; }
};

}  // namespace dali
