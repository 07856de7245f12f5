// AVX-512 with VBMI, whose permutations look up 64 bytes at a time in two registers: what codes stand for (kernels/codes_by_byte.h).
#pragma once

#include <array>

#include "lanes/avx512.h"

namespace dali {

// A byte's lowest seven bits, and an eighth that makes the number of those set even.
constexpr std::array<uint8_t, 128> even_bytes() {
    std::array<uint8_t, 128> table{};
    for (int seven = 0; seven < 128; seven++) {
        int odd = 0;
        for (int bit = 0; bit < 7; bit++) odd ^= seven >> bit & 1;
        table[seven] = uint8_t(seven | odd << 7);
    }
    return table;
}

struct Avx512Vbmi : Avx512<true> {
    using Mask = __mmask64;

    static constexpr int bits_above_128(int codes) { return codes == 128 ? 0 : 1 + bits_above_128(codes / 2); }

    // Bytes of a table of `codes`, at codes whose bits from the eighth on are in `masks`.
    template <int codes>
    static Line look_up_bytes(const uint8_t* table, Line low, const Mask* masks) {
        return look_up_part<codes>(table, low, _mm512_movepi8_mask(low), masks);
    }
    // Bytes of a table of 64, at the lowest six bits of each byte.
    static Line look_up_six_bits(const uint8_t* table, Line at) { return _mm512_permutexvar_epi8(at, _mm512_load_si512(table)); }
    // In each word, copies of its bytes: these four.
    template <int a, int b, int c, int d>
    static Line spread(Line words) {
        constexpr int order = a | b << 8 | c << 16 | d << 24;
        return _mm512_shuffle_epi8(words, _mm512_set4_epi32(order + 0x0C0C0C0C, order + 0x08080808, order + 0x04040404, order));
    }
    // In each word, four bytes that begin at these bits of it. What a byte has beyond the word's end is the word's beginning or another's.
    template <int a, int b, int c, int d>
    static Line bytes_from(Line words) {
        constexpr int64_t low = a | b << 8 | c << 16 | d << 24;
        return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(low | (low + 0x20202020) << 32), words);
    }
    // Bits of each byte moved, those of its neighbours behind them.
    template <int by>
    static Line up(Line line) { return _mm512_slli_epi16(line, by); }
    template <int by>
    static Line down(Line line) { return _mm512_srli_epi16(line, by); }
    // Each byte's bits of `mask` from `b`, the others from `a`.
    template <int mask>
    static Line mixed(Line a, Line b) { return _mm512_ternarylogic_epi32(_mm512_set1_epi8(mask), b, a, 0xCA); }
    // Of the lowest seven bits of each byte.
    static Line eight_signs(Line sevens) {
        alignas(64) static constexpr std::array<uint8_t, 128> table = even_bytes();
        return _mm512_permutex2var_epi8(_mm512_load_si512(table.data()), sevens, _mm512_load_si512(table.data() + 64));
    }
    // Bytes with any of the bits of a byte in the same place of `pattern`.
    static Mask bytes_with(Line line, uint32_t pattern) { return _mm512_test_epi8_mask(line, _mm512_set1_epi32(int(pattern))); }
    // Of each word the low halves of both, or the high ones.
    static Line low_halves(Line a, Line b) {
        return _mm512_mask_shuffle_epi8(a, 0xCCCCCCCCCCCCCCCCu, b, _mm512_set4_epi32(0x0D0C0D0C, 0x09080908, 0x05040504, 0x01000100));
    }
    static Line high_halves(Line a, Line b) {
        return _mm512_mask_shuffle_epi8(b, 0x3333333333333333u, a, _mm512_set4_epi32(0x0F0E0F0E, 0x0B0A0B0A, 0x07060706, 0x03020302));
    }
    static Line less_two(Line values, Mask where) { return _mm512_mask_sub_epi8(values, where, values, _mm512_set1_epi8(2)); }

  private:
    template <int codes>
    static Line look_up_part(const uint8_t* table, Line low, Mask bit7, const Mask* masks) {
        if constexpr (codes == 128) {
            return _mm512_permutex2var_epi8(_mm512_load_si512(table), low, _mm512_load_si512(table + 64));
        } else {
            const Mask upper = codes == 256 ? bit7 : masks[bits_above_128(codes) - 2];
            return _mm512_mask_blend_epi8(upper, look_up_part<codes / 2>(table, low, bit7, masks),
                                          look_up_part<codes / 2>(table + codes / 2, low, bit7, masks));
        }
    }
};

}  // namespace dali
