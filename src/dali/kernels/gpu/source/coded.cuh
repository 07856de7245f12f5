// What a lane takes of a group of formats that hold codes (src/dali/kernels/coded.py has their bits), and the scales; and likewise of any.
#pragma once

#include "grids.cuh"
#include "groups.cuh"

namespace dali::gpu {

// A code's four weights from `half` on, as unsigned bytes. Grids of codes for eight columns hold places among the grid's values, a nibble
// each; bit 11 of an IQ1 code moves its weights down by an eighth, to the last four of the values.
template <int format>
DALI_DEVICE uint32_t look_up_code(uint32_t code, int half) {
    if (format == IQ3_S) return of_iq3_s(code);
    if (format == IQ3_XXS) return of_iq3_xxs(code);
    const int shift = 16 * half;
    if (format == IQ2_S) return select_bytes(values_of_iq2_s(0), 0, of_iq2_s(code) >> shift);
    if (format == IQ2_XS) return select_bytes(values_of_iq2_xs(0), 0, of_iq2_xs(code) >> shift);
    if (format == IQ2_XXS) return select_bytes(values_of_iq2_xxs(0), 0, of_iq2_xxs(code) >> shift);
    const uint32_t places = of_iq1(code & 2047) | (code >> 11) * 0x44444444u;
    return select_bytes(values_of_iq1(0), values_of_iq1(1), places >> shift);
}

// Signs of columns 4 t to 4 t + 3 in the lowest bits, of those 16 further on from bit 16 on. Where every eighth one is left out, it makes the
// number of minus signs even.
template <int format>
DALI_DEVICE uint32_t signs_of(uint32_t word, int t) {
    if (format == IQ3_S || format == IQ2_S) return word >> (4 * t);
    const int first = format == IQ2_XS ? 8 * (t / 2) + 1 : 7 * (t / 2), apart = format == IQ2_XS ? 16 : 14;
    const uint32_t sevens = (word >> first & 127) | (word >> (first + apart) & 127) << 16;
    uint32_t odd = sevens ^ sevens >> 4;
    odd ^= odd >> 2;
    odd ^= odd >> 1;
    return (sevens | (odd & 0x00010001u) << 7) >> (4 * (t % 2));
}

// 128 - value in the bytes whose bit of four is set.
DALI_DEVICE uint32_t negated(uint32_t values, uint32_t signs) {
    const uint32_t minus = ((signs & 15) * 0x00204081u & 0x01010101u) * 0xFFu;
    return (values & ~minus) | ((0x80808080u - values) & minus);
}

DALI_DEVICE uint32_t word_of(const uint4& words, int row) { return row == 0 ? words.x : row == 1 ? words.y : row == 2 ? words.z : words.w; }

// Of the codes of a row: its bits from the eighth on, of the one in `low` and the one in `high`. `more`: what the scale plane says of the
// group's codes; `word`: of signs.
template <int format>
DALI_DEVICE uint2 high_bits(uint32_t more, uint32_t word, int t) {
    const int entry = t / 2;  // of eight columns; the other one is entry + 2
    if (format == IQ3_S) return {more >> t & 1, more >> (t + 4) & 1};
    if (format == IQ2_S) return {more >> (2 * entry) & 3, more >> (2 * entry + 4) & 3};
    if (format == IQ2_XS) return {word >> (8 * entry) & 1, word >> (8 * entry + 16) & 1};
    if (format == IQ1_M) return {more >> (4 * entry) & 15, more >> (4 * entry + 8) & 15};
    const uint32_t down = more >> 12 & 8;
    if (format == IQ1_S) return {(more >> (3 * entry) & 7) | down, (more >> (3 * entry + 6) & 7) | down};
    return {0, 0};
}

template <int format>
DALI_DEVICE Quants unpack_codes(const uint8_t* quants, const uint8_t* block, int group, int row, int t) {
    constexpr int bits = TRAITS[format].bits;
    const uint8_t* own = quants + row * 4;
    const uint4 first = load_once(own);
    const uint4 second = bits == 3 ? load_once(own + LINE) : first;
    const uint4 word = bits > 1 ? load_once(own + (bits - 1) * LINE) : uint4{};
    uint2 more{};  // of the four rows: bytes in x, or two of 16 bits in each
    if (format == IQ3_S || format == IQ2_S) more.x = *reinterpret_cast<const uint32_t*>(block + 32 + TILE_ROWS * group + row);
    if (bits == 1) more = *reinterpret_cast<const uint2*>(block + 32 + 2 * TILE_ROWS * group + 2 * row);
    uint32_t low[4], high[4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        const uint32_t of_row = bits == 1 ? (r < 2 ? more.x : more.y) >> (16 * (r % 2)) & 0xFFFFu : more.x >> (8 * r) & 255;
        const uint32_t signs = word_of(word, r);
        const uint2 above = high_bits<format>(of_row, signs, t);
        const int place = bits == 3 ? t : t / 2;  // of the code's byte
        low[r] = look_up_code<format>((word_of(first, r) >> (8 * place) & 255) | above.x << 8, t % 2);
        high[r] = look_up_code<format>((word_of(second, r) >> (8 * (bits == 3 ? place : place + 2)) & 255) | above.y << 8, t % 2);
        if (bits == 1) continue;
        const uint32_t minus = signs_of<format>(signs, t);
        low[r] = negated(low[r], minus);
        high[r] = negated(high[r], minus >> 16);
    }
    return {{low[0], low[1], low[2], low[3]}, {high[0], high[1], high[2], high[3]}, word};
}

// A scale's number, of the rows from `row` on, a byte each.
template <int format>
DALI_DEVICE uint32_t scale_numbers(const uint8_t* block, const uint4& word, int group, int part, int row) {
    const auto bytes = [=](int at) { return *reinterpret_cast<const uint32_t*>(block + at + row); };
    if (format == IQ3_S) return bytes(160 + TILE_ROWS * (group / 2)) >> (4 * (group % 2)) & 0x0F0F0F0Fu;
    if (format == IQ2_S || format == IQ2_XS) return bytes((format == IQ2_S ? 160 : 32) + TILE_ROWS * group) >> (4 * part) & 0x0F0F0F0Fu;
    if (format == IQ1_S) {
        const uint2 words = *reinterpret_cast<const uint2*>(block + 32 + 2 * TILE_ROWS * group + 2 * row);
        return select_bytes(words.x >> 4, words.y >> 4, 0x7531u) & 0x07070707u;
    }
    if (format == IQ1_M) {  // two numbers of 3 bits: 4 bits of both, and 2 bits apart
        const uint32_t low = bytes(288 + TILE_ROWS * (group / 2)) >> (4 * (group % 2));
        const uint32_t high = bytes(352 + TILE_ROWS * (group / 4)) >> (2 * (group % 4));
        return part ? (low >> 3 & 0x01010101u) | (high & 0x03030303u) << 1 : low & 0x07070707u;
    }
    uint32_t numbers = 0;
    for (int r = 0; r < 4; r++) numbers |= word_of(word, r) >> 28 << (8 * r);
    return numbers;
}

// d times (the number and a half), times a step: exact but for the last product.
template <int format>
DALI_DEVICE Scales read_coded_scales(const uint8_t* block, const uint4& word, int group, int part, int row) {
    constexpr float step = format == IQ3_S ? 2.0f : format == IQ3_XXS ? 0.5f : 0.25f;
    const uint32_t numbers = scale_numbers<format>(block, word, group, part, row);
    float d[4];
    four_halves(block + 2 * row, d);
    Scales to;
    for (int r = 0; r < 4; r++) to.scale[r] = mul(fma(__int2float_rn(int(numbers >> (8 * r) & 255)), step, step / 2), d[r]);
    return to;
}

// --- Of any format.

template <int format>
DALI_DEVICE const uint8_t* block_of(const uint8_t* tile, int group) {
    return tile + TRAITS[format].scale_bytes * TILE_ROWS * (group * GROUP / TRAITS[format].block);
}
template <int format>
DALI_DEVICE Quants quants_of_group(const uint8_t* quants, const uint8_t* tile, int group, int row, int t) {
    if constexpr (is_coded(format)) return unpack_codes<format>(quants, block_of<format>(tile, group), group % 8, row, t);
    else return unpack<format>(quants, row, t);
}
template <int format>
DALI_DEVICE Scales scales_of_part(const uint8_t* tile, const uint4& word, int group, int part, int row) {
    const uint8_t* block = block_of<format>(tile, group);
    const int within = group % (TRAITS[format].block / GROUP);
    if constexpr (is_coded(format)) return read_coded_scales<format>(block, word, within, part, row);
    else return read_scales<format>(block, within, part, row);
}

}  // namespace dali::gpu
