// Rows of packed matrices times tokens. A warp takes a strip: two tiles, 32 rows. The layout is that of src/dali/kernels/formats.py as it
// lies in RAM and on disk: a lane's 16 bytes of a group are four rows' four columns, which is what the tensor cores take.
//
// Every (row, token) is summed as on the CPU: groups front to back, one multiply-add each; 16-bit floats in two sums, even and odd
// columns. Integer sums are exact in any order. So a result depends on nothing but its row and its token.
#pragma once

#include "panel.cuh"

namespace dali::gpu {

enum Format { F32, F16, BF16, W8, W4, MXFP4, Q4K };  // as src/native/layout/format.h numbers them

constexpr int TILE_ROWS = 16, LINE = 64, STRIP_ROWS = 32, PASS = 8;  // PASS: tokens the tensor cores take at once

DALI_DEVICE constexpr bool is_quantized(int format) { return format >= W8; }
// What unsigned quants stand above their value by; q4k's minimum is a float of its own.
DALI_DEVICE constexpr int zero_point(int format) { return format == W8 ? 128 : format == W4 ? 8 : format == MXFP4 ? 12 : 0; }
DALI_DEVICE constexpr int group_bytes(int format) { return format == W8 ? 512 : 256; }
DALI_DEVICE constexpr int column_bytes(int format) { return format == F32 ? 4 : 2; }  // of float formats

// The strip's tile that lane `lane` reads rows of, at its first byte. The last strip of an odd number of tiles has no second one: its
// lanes read the first anew, and what they find is dropped.
template <int format>
DALI_DEVICE const uint8_t* tile_of(const uint8_t* record, const Matrix& matrix, int64_t strip, int second) {
    const int64_t tiles = (matrix.rows + TILE_ROWS - 1) / TILE_ROWS, tile = 2 * strip + second;
    const int64_t bytes = matrix.plane + (is_quantized(format) ? int64_t(matrix.columns / GROUP) * group_bytes(format)
                                                                : int64_t(matrix.columns) * TILE_ROWS * column_bytes(format));
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

// Sixteen values by four-bit code, as bytes: MXFP4's, doubled, plus 12.
DALI_DEVICE uint32_t look_up(uint32_t codes) {
    const uint32_t which = (codes & 0x7) | (codes >> 4 & 0x70) | (codes >> 8 & 0x700) | (codes >> 12 & 0x7000);
    const uint32_t positive = select_bytes(0x0F0E0D0Cu, 0x18141210u, which), negative = select_bytes(0x090A0B0Cu, 0x00040608u, which);
    const uint32_t sign = (codes >> 3 & 0x01010101u) * 0xFFu;  // all bits of the bytes whose code is negative
    return (positive & ~sign) | (negative & sign);
}

template <int format>
DALI_DEVICE void unpack(const uint8_t* quants, uint4& low, uint4& high) {
    if (format == W8) {
        low = load_once(quants);
        high = load_once(quants + 256);
        return;
    }
    const uint4 both = load_once(quants);
    low = {both.x & 0x0F0F0F0Fu, both.y & 0x0F0F0F0Fu, both.z & 0x0F0F0F0Fu, both.w & 0x0F0F0F0Fu};
    high = {both.x >> 4 & 0x0F0F0F0Fu, both.y >> 4 & 0x0F0F0F0Fu, both.z >> 4 & 0x0F0F0F0Fu, both.w >> 4 & 0x0F0F0F0Fu};
    if (format == MXFP4) {
        low = {look_up(low.x), look_up(low.y), look_up(low.z), look_up(low.w)};
        high = {look_up(high.x), look_up(high.y), look_up(high.z), look_up(high.w)};
    }
}

DALI_DEVICE void four_halves(const uint8_t* from, float (&to)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = from_half(uint16_t(words.x));
    to[1] = from_half(uint16_t(words.x >> 16));
    to[2] = from_half(uint16_t(words.y));
    to[3] = from_half(uint16_t(words.y >> 16));
}

// Scales of the four rows from `row` on, for group `group`; of q4k also what is taken off.
template <int format>
DALI_DEVICE void read_scales(const uint8_t* tile, int group, int row, float (&scale)[4], float (&minimum)[4]) {
    if (format == MXFP4) {
        const uint32_t bytes = *reinterpret_cast<const uint32_t*>(tile + 16 * group + row);
        for (int r = 0; r < 4; r++) {
            const uint32_t e = bytes >> (8 * r) & 255;
            scale[r] = from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        }
    } else if (format == Q4K) {
        const uint8_t* block = tile + 320 * (group / 8);
        const uint8_t* bytes = block + 64 + 16 * (group % 8) + row;
        const uint32_t scales = *reinterpret_cast<const uint32_t*>(bytes), minimums = *reinterpret_cast<const uint32_t*>(bytes + 128);
        float d[4], least[4];
        four_halves(block + 2 * row, d);
        four_halves(block + 32 + 2 * row, least);
        for (int r = 0; r < 4; r++) {
            scale[r] = mul(__int2float_rn(int(scales >> (8 * r) & 255)), d[r]);
            minimum[r] = mul(__int2float_rn(int(minimums >> (8 * r) & 255)), least[r]);
        }
    } else {
        four_halves(tile + 32 * group + 2 * row, scale);
    }
}

// Adds the strip's rows times tokens. row_of(i): the panel's row of token i of the passes, or -1 where there is none.
template <int format, int passes, class RowOf>
DALI_DEVICE void multiply_strip(const uint8_t* record, const Matrix& matrix, int64_t strip, const Panel& panel, RowOf row_of,
                                Sums<passes>& sums) {
    const int lane = lane_of_warp(), g = lane / 4, t = lane % 4, row = g % 4 * 4;
    const int groups = matrix.columns / GROUP, panel_groups = panel.columns / GROUP;
    const uint8_t* tile = tile_of<format>(record, matrix, strip, g / 4);
    const uint8_t* quants = tile + matrix.plane + t * LINE + row * 4;
    int64_t read[passes], mine[passes][2];  // the panel's rows whose quants this lane hands in, and whose sums it gets
#pragma unroll
    for (int p = 0; p < passes; p++) {
        read[p] = row_of(p * PASS + g);
        for (int i = 0; i < 2; i++) mine[p][i] = row_of(p * PASS + 2 * t + i);
    }
#pragma unroll(passes == 1 ? 4 : 1)
    for (int group = 0; group < groups; group++) {
        uint4 low, high;
        unpack<format>(quants + int64_t(group) * group_bytes(format), low, high);
        float scale[4], minimum[4];
        read_scales<format>(tile, group, row, scale, minimum);
#pragma unroll
        for (int p = 0; p < passes; p++) {
            uint32_t x_low = 0, x_high = 0;
            if (read[p] >= 0) {
                const int8_t* x = panel.quants + read[p] * panel.columns + group * GROUP + 4 * t;
                x_low = *reinterpret_cast<const uint32_t*>(x);
                x_high = *reinterpret_cast<const uint32_t*>(x + 16);
            }
            float token_scale[2] = {0, 0};
            int token_sum[2] = {0, 0};
            for (int i = 0; i < 2; i++)
                if (mine[p][i] >= 0) {
                    const int64_t at = mine[p][i] * panel_groups + group;
                    token_scale[i] = panel.scales[at];
                    token_sum[i] = panel.sums[at];
                }
            const int first = -zero_point(format) * token_sum[0], second = -zero_point(format) * token_sum[1];
            int c[4] = {first, second, first, second}, d[4] = {first, second, first, second};
            multiply_add(c, low.x, low.y, x_low);
            multiply_add(c, high.x, high.y, x_high);
            multiply_add(d, low.z, low.w, x_low);
            multiply_add(d, high.z, high.w, x_high);
            for (int r = 0; r < 4; r++)
                for (int i = 0; i < 2; i++) {
                    const int exact = r < 2 ? c[2 * r + i] : d[2 * (r - 2) + i];
                    float& sum = sums.of[p][r][i];
                    sum = fma(__int2float_rn(exact), mul(scale[r], token_scale[i]), sum);
                    if (format == Q4K) sum = fma(-mul(token_scale[i], __int2float_rn(token_sum[i])), minimum[r], sum);
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
    int64_t row[PASS];
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
            const float* x = panel.values + row[i] * panel.columns + line * step;
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
