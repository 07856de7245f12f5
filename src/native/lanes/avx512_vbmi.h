// AVX-512 with VBMI, whose permutations look up 64 bytes at a time in two registers: what codes stand for (kernels/coded.h).
#pragma once

#include "lanes/avx512.h"

namespace dali {

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
    // Bytes with any of the bits of a byte in the same place of `pattern`.
    static Mask bytes_with(Line line, uint32_t pattern) { return _mm512_test_epi8_mask(line, _mm512_set1_epi32(int(pattern))); }
    // The even bytes of both, or the odd ones, in turn.
    static Line even_bytes(Line a, Line b) {
        return _mm512_mask_shuffle_epi8(a, 0xAAAAAAAAAAAAAAAAu, b, _mm512_set4_epi32(0x0E0E0C0C, 0x0A0A0808, 0x06060404, 0x02020000));
    }
    static Line odd_bytes(Line a, Line b) {
        return _mm512_mask_shuffle_epi8(b, 0x5555555555555555u, a, _mm512_set4_epi32(0x0F0F0D0D, 0x0B0B0909, 0x07070505, 0x03030101));
    }
    static Line less_two(Line values, Mask where) { return _mm512_mask_sub_epi8(values, where, values, _mm512_set1_epi8(2)); }
    // 128 - value for columns with a sign: those of line `i`, transposed.
    template <int i>
    static Line negated(Line values, Line signs) {
        const Mask minus = _mm512_test_epi8_mask(signs, _mm512_set1_epi8(char(1 << i)));
        return _mm512_mask_sub_epi8(values, minus, _mm512_set1_epi8(char(128)), values);
    }

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
