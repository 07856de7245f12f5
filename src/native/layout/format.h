// The packed byte layout of src/dali/kernels/formats.py, as the kernels read it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dali {

constexpr int TILE_ROWS = 16;
constexpr int GROUP = 32;  // columns whose products are summed in integers
constexpr int LINE = 64;   // bytes: 4 of each of a tile's rows

// Quantized ones from w8 on; those from iq3_s on hold codes, which stand for rows of tables of values, "grids". Decoded tiles exist for the
// time of a call: bytes with the zero point of the codes' format, scales in float32.
enum class Format : int {
    f32, f16, bf16, w8, w4, mxfp4, q4k, q4_1, q5_0, q5_1, q5k, q6k, q3k, q2k, iq4_nl, iq4_xs, nvfp4, tq2_0,
    iq3_s, iq3_xxs, iq2_s, iq2_xs, iq2_xxs, iq1_s, iq1_m, decoded, decoded_halves
};

struct FormatTraits {
    const char* name;
    int bits;         // of a weight, without its scales
    int block;        // columns that share scales
    int scale_bytes;  // a block's, of each row
    // What unsigned quants stand above their value by: the kernels multiply them as they are and take this many times the sum of the
    // activations off. Of codes that are looked up, how much the table's values stand above.
    int zero = 0;
    bool halves = false;   // 16 columns share a scale, not 32
    bool minimum = false;  // a float is taken off, times the sum of the activations
};

constexpr FormatTraits TRAITS[] = {
    {"f32", 32, GROUP, 0},           {"f16", 16, GROUP, 0},          {"bf16", 16, GROUP, 0},
    {"w8", 8, GROUP, 2, 128},        {"w4", 4, GROUP, 2, 8},         {"mxfp4", 4, GROUP, 1, 12},
    {"q4k", 4, 256, 16, 0, false, true},
    {"q4_1", 4, GROUP, 4, 0, false, true},
    {"q5_0", 5, GROUP, 2, 16},
    {"q5_1", 5, GROUP, 4, 0, false, true},
    {"q5k", 5, 256, 16, 0, false, true},
    {"q6k", 6, 256, 18, 32, true},
    {"q3k", 3, 256, 14, 4, true},
    {"q2k", 2, 256, 20, 0, true, true},
    {"iq4_nl", 4, GROUP, 2, 128},
    {"iq4_xs", 4, 256, 8, 128},
    {"nvfp4", 4, 64, 4, 12, true},
    {"tq2_0", 2, 256, 2, 1},
    {"iq3_s", 3, 256, 14, 64},
    {"iq3_xxs", 3, 256, 2, 64},
    {"iq2_s", 2, 256, 18, 64, true},
    {"iq2_xs", 2, 256, 10, 64, true},
    {"iq2_xxs", 2, 256, 2, 64},
    {"iq1_s", 1, 256, 18, 16},
    {"iq1_m", 1, 256, 24, 16, true},
    {"decoded", 8, GROUP, 4, 64},
    {"decoded_halves", 8, GROUP, 8, 64, true},
};
constexpr int FORMATS = sizeof(TRAITS) / sizeof(TRAITS[0]);

constexpr const FormatTraits& traits(Format format) { return TRAITS[int(format)]; }
constexpr bool is_quantized(Format format) { return format >= Format::w8; }
constexpr bool is_grid(Format format) { return format >= Format::iq3_s && format <= Format::iq1_m; }
constexpr bool is_decoded(Format format) { return format >= Format::decoded; }
constexpr Format decoded_format(Format format) { return traits(format).halves ? Format::decoded_halves : Format::decoded; }
constexpr int block_columns(Format format) { return traits(format).block; }
constexpr int bits(Format format) { return traits(format).bits; }
constexpr int zero_point(Format format) { return traits(format).zero; }
constexpr int scales_of_group(Format format) { return traits(format).halves ? 2 : 1; }
// The most that a quant is, as kernels multiply it.
constexpr int most_quant(Format format) {
    if (format == Format::mxfp4 || format == Format::nvfp4) return 24;
    if (format == Format::iq4_nl || format == Format::iq4_xs) return 241;
    return is_grid(format) || is_decoded(format) ? 127 : (1 << bits(format)) - 1;
}
// Bytes of a tile's scale plane that one block of columns takes.
constexpr int block_scale_bytes(Format format) { return traits(format).scale_bytes * TILE_ROWS; }
// Bytes of a tile's 16 rows in a group of 32 columns, without scales.
constexpr int group_bytes(Format format) { return bits(format) * LINE; }

// Whether activations filled for one serve the other: the same numbers in the same order, sums of the same columns, taken off in the same
// way.
constexpr bool shares_panels(Format a, Format b) {
    return is_quantized(a) == is_quantized(b) && traits(a).zero == traits(b).zero && traits(a).halves == traits(b).halves &&
           traits(a).minimum == traits(b).minimum && is_grid(a) == is_grid(b) && (!is_grid(a) || (bits(a) == 3) == (bits(b) == 3));
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
        tile_bytes = plane_bytes + size_t(columns / GROUP) * group_bytes(format);
    }

    int tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    size_t bytes() const { return tiles() * tile_bytes; }
};

}  // namespace dali
