// Rows of packed matrices times tokens. A warp takes a strip: two tiles, 32 rows. The layout is that of src/dali/kernels/formats.py as it
// lies in RAM and on disk: a lane's 16 bytes of a group are four rows' four columns, which is what the tensor cores take.
//
// Every (row, token) is summed as on the CPU: groups front to back, one multiply-add each; 16-bit floats in two sums, even and odd
// columns. Integer sums are exact in any order. So a result depends on nothing but its row and its token.
#pragma once

#include "coded.cuh"
#include "panel.cuh"

namespace dali::gpu {

constexpr int STRIP_ROWS = 32, PASS = 8;  // PASS: tokens the tensor cores take at once

// The strip's tile that lane `lane` reads rows of, at its first byte. The last strip of an odd number of tiles has no second one: its
// lanes read the first anew, and what they find is dropped.
template <int format>
DALI_DEVICE const uint8_t* tile_of(const uint8_t* record, const Matrix& matrix, int64_t strip, int second) {
    const int64_t tiles = (matrix.rows + TILE_ROWS - 1) / TILE_ROWS, tile = 2 * strip + second;
    const int64_t bytes = matrix.plane + int64_t(matrix.columns / GROUP) * group_bytes(format);
    return record + matrix.at + (tile < tiles ? tile : 2 * strip) * bytes;
}

// --- Quantized formats: lane l = 4 g + t has rows 4 (g % 4) ... + 3 of tile g / 4, and after all groups of tokens 2 t and 2 t + 1.

// Where a lane's rows begin in the strip.
DALI_DEVICE int first_row_of(int lane) { return lane / 16 * TILE_ROWS + lane / 4 % 4 * 4; }

// acc[pass][row][token]: of the lane's four rows and two tokens.
template <int passes>
struct Sums {
    float of[passes][4][2];
};

// What the lane hands in of a token's group, and the scale and sums of the groups of the two tokens whose sums it gets.
struct TokenGroups {
    uint32_t low, high, sums[2];
    float scale[2];
};

// Adds a group of the lane's rows times eight tokens; or one half of it, `part`, where each has scales of its own.
template <int format>
DALI_DEVICE void add_group(const Quants& rows, const Scales& scales, int part, const TokenGroups& x, float (&sums)[4][2]) {
    constexpr FormatTraits of = TRAITS[format];
    int summed[2], c[4], d[4];
    for (int i = 0; i < 2; i++) {
        summed[i] = of.halves ? sum_of_half(x.sums[i], part) : sum_of_half(x.sums[i], 0) + sum_of_half(x.sums[i], 1);
        c[i] = c[2 + i] = d[i] = d[2 + i] = -of.zero * summed[i];
    }
    const uint4& first = part ? rows.high : rows.low;
    const uint32_t x_first = part ? x.high : x.low;
    multiply_add(c, first.x, first.y, x_first);
    multiply_add(d, first.z, first.w, x_first);
    if (!of.halves) {
        multiply_add(c, rows.high.x, rows.high.y, x.high);
        multiply_add(d, rows.high.z, rows.high.w, x.high);
    }
    for (int r = 0; r < 4; r++)
        for (int i = 0; i < 2; i++) {
            const int exact = r < 2 ? c[2 * r + i] : d[2 * (r - 2) + i];
            sums[r][i] = fma(__int2float_rn(exact), mul(scales.scale[r], x.scale[i]), sums[r][i]);
            if (of.minimum) sums[r][i] = fma(-mul(x.scale[i], __int2float_rn(summed[i])), scales.minimum[r], sums[r][i]);
        }
}

// Adds the strip's rows times tokens. row_of(i): the panel's row of token i of the passes, or -1 where there is none.
template <int format, int passes, class RowOf>
DALI_DEVICE void multiply_strip(const uint8_t* record, const Matrix& matrix, int64_t strip, const Panel& panel, RowOf row_of,
                                Sums<passes>& sums) {
    const int lane = lane_of_warp(), g = lane / 4, t = lane % 4, row = g % 4 * 4;
    const int groups = matrix.columns / GROUP, panel_groups = panel.columns / GROUP;
    const uint8_t* tile = tile_of<format>(record, matrix, strip, g / 4);
    const uint8_t* quants = tile + matrix.plane;
    const auto row_or_any = [&](int token) { return row_of(token) < 0 ? 0 : row_of(token); };  // nobody reads the sums of one that is not there
    int read[passes], mine[passes][2];  // the panel's quants that this lane hands in, and the groups of the rows whose sums it gets
#pragma unroll
    for (int p = 0; p < passes; p++) {
        read[p] = row_or_any(p * PASS + g) * panel.columns + 4 * t;
        for (int i = 0; i < 2; i++) mine[p][i] = row_or_any(p * PASS + 2 * t + i) * panel_groups;
    }
#pragma unroll(passes > 1 ? 1 : TRAITS[format].halves || is_coded(format) ? 2 : 4)
    for (int group = 0; group < groups; group++) {
        const Quants rows = quants_of_group<format>(quants + int64_t(group) * group_bytes(format), tile, group, row, t);
#pragma unroll(passes > 1 ? 1 : 2)
        for (int part = 0; part < scales_of_group(format); part++) {
            const Scales scales = scales_of_part<format>(tile, rows.word, group, part, row);
#pragma unroll
            for (int p = 0; p < passes; p++) {
                const int8_t* from = panel.quants + read[p] + group * GROUP;
                TokenGroups x;
                x.low = *reinterpret_cast<const uint32_t*>(from);
                x.high = *reinterpret_cast<const uint32_t*>(from + 16);
                for (int i = 0; i < 2; i++) {
                    x.scale[i] = panel.scales[mine[p][i] + group];
                    x.sums[i] = panel.sums[mine[p][i] + group];
                }
                add_group<format>(rows, scales, part, x, sums.of[p]);
            }
        }
    }
}

// --- Float formats: lane l has row l % 16 of tile l / 16, and of it all tokens of a pass.

template <int format, class RowOf>
DALI_DEVICE void multiply_rows(const uint8_t* record, const Matrix& matrix, int64_t strip, const Panel& panel, RowOf row_of,
                               float (&sums)[PASS]) {
    const int lane = lane_of_warp();
    const uint8_t* words = tile_of<format>(record, matrix, strip, lane / 16) + lane % 16 * 4;
    constexpr int step = format == F32 ? 1 : 2;  // columns a word
    float even[PASS] = {}, odd[PASS] = {};
    int row[PASS];
#pragma unroll
    for (int i = 0; i < PASS; i++) row[i] = row_of(i);
#pragma unroll 4
    for (int line = 0; line < matrix.columns / step; line++) {
        const uint32_t word = *reinterpret_cast<const uint32_t*>(words + int64_t(line) * LINE);
        const float first = format == F32 ? from_bits(word) : format == BF16 ? from_bits(word << 16) : from_half(uint16_t(word));
        const float second = format == BF16 ? from_bits(word & 0xFFFF0000u) : from_half(uint16_t(word >> 16));
#pragma unroll
        for (int i = 0; i < PASS; i++) {
            if (row[i] < 0) continue;
            const float* x = panel.values + int64_t(row[i]) * panel.columns + line * step;
            even[i] = fma(first, x[0], even[i]);
            if (step == 2) odd[i] = fma(second, x[step - 1], odd[i]);
        }
    }
    for (int i = 0; i < PASS; i++) sums[i] = step == 1 ? even[i] : add(even[i], odd[i]);
}

// --- Panels. Kernels that fill them: a warp a group of a token's columns.

template <int format>
DALI_DEVICE void fill_panel(const GatherCall& call) {
    const int groups = call.panel.columns / GROUP;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.tokens) * groups) return;
    const int64_t token = warp / groups;
    const int group = int(warp % groups), column = group * GROUP + lane_of_warp();
    const float value = column < call.width ? read(call.x, call.dtype, token * call.width + column) : 0.0f;
    if (is_quantized(format)) quantize_group(call.panel, token, group, value);
    else call.panel.values[token * call.panel.columns + column] = value;
}

}  // namespace dali::gpu
