// 16 rows a register: AVX-512 with VNNI (F, BW, VL, VNNI), with or without VBMI (lanes/avx512_vbmi.h).
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "lanes/bytes.h"

namespace dali {

template <bool vbmi>
struct Avx512 {
    using Floats = __m512;
    using Ints = __m512i;
    using Line = __m512i;  // 64 bytes: 4 of each of 16 rows
    static constexpr int most_tokens = 12;
    static constexpr int few_tokens = 2;
    static constexpr bool centred = false;  // dot() takes quants as they are
    static constexpr bool transposed = vbmi;

    static Floats zero() { return _mm512_setzero_ps(); }
    static Floats set(float value) { return _mm512_set1_ps(value); }
    static Floats load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, Floats value) { _mm512_storeu_ps(to, value); }
    static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
    static Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
    static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
    static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
    // NaN in `value` comes through.
    static Floats at_most(Floats limit, Floats value) { return _mm512_min_ps(limit, value); }
    static Floats at_least(Floats limit, Floats value) { return _mm512_max_ps(limit, value); }
    // x where a < b, else y; y where either is NaN.
    static Floats where_less(Floats a, Floats b, Floats x, Floats y) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
    }
    static Floats round(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // 2^n of whole n in [-127, 128], which give 0 and infinity.
    static Floats power_of_two(Floats n) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
    }

    static Ints set_ints(int32_t value) { return _mm512_set1_epi32(value); }
    static Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
    static Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }

    static Line load_line(const uint8_t* from) { return _mm512_loadu_si512(from); }
    static void store_line(uint8_t* to, Line line) { _mm512_storeu_si512(to, line); }
    // Bits `from` on of each byte, `width` of them, moved to `to`: alone, or under those of `base`, which has none there.
    template <int from, int to, int width>
    static Line bits(Line line) {
        return _mm512_and_si512(shifted<from, to>(line), _mm512_set1_epi8(((1 << width) - 1) << to));
    }
    template <int from, int to, int width>
    static Line add_bits(Line base, Line line) {  // base | (shifted & mask)
        const Line moved = shifted<from, to>(line);  // a macro of Clang's would take its comma for its own
        return _mm512_ternarylogic_epi32(base, moved, _mm512_set1_epi8(((1 << width) - 1) << to), 0xF8);
    }
    // Byte `at` of each row's four.
    static Floats byte_of(Line line, int at) {
        const __m512i down = _mm512_srl_epi32(line, _mm_cvtsi32_si128(8 * at));
        return _mm512_cvtepi32_ps(_mm512_and_si512(down, _mm512_set1_epi32(255)));
    }
    static Line look_up(const uint8_t* table16, Line codes) {
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(table16))), codes);
    }
    // Of words, 4 bytes a row: bits `from` on, `width` of them, moved to `to`; the bits of a mask; logic; one for each byte or 16 bits.
    template <int from, int to, int width>
    static Line word_bits(Line line) {
        const __m512i moved = from > to ? _mm512_srli_epi32(line, from > to ? from - to : 0) : _mm512_slli_epi32(line, from > to ? 0 : to - from);
        if constexpr ((from > to && from + width == 32 && to == 0) || (from <= to && to + width == 32 && from == 0)) return moved;
        return _mm512_and_si512(moved, _mm512_set1_epi32(int(((uint64_t(1) << width) - 1) << to)));
    }
    template <uint32_t mask>
    static Line kept(Line line) {
        return _mm512_and_si512(line, _mm512_set1_epi32(int(mask)));
    }
    static Line either(Line a, Line b) { return _mm512_or_si512(a, b); }
    static Line differ(Line a, Line b) { return _mm512_xor_si512(a, b); }
    // (n + 1/2) * step for the number n in a word's lowest four bits.
    static Floats number_and_half(Line words, float step) {
        const __m512 each = _mm512_setr_ps(0.5f, 1.5f, 2.5f, 3.5f, 4.5f, 5.5f, 6.5f, 7.5f, 8.5f, 9.5f, 10.5f, 11.5f, 12.5f, 13.5f, 14.5f, 15.5f);
        return _mm512_permutexvar_ps(words, _mm512_mul_ps(each, _mm512_set1_ps(step)));
    }
    static Line words_of_bytes(Bytes16 bytes) { return _mm512_cvtepu8_epi32((__m128i)bytes); }
    static Line words_of_halves(const uint8_t* from) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    // Of tables of words, 4 bytes an entry, or of pairs of them: the entries of 16 rows. Single loads are quicker than gathers.
    static DALI_INLINE Line look_up_words(const uint32_t* table, const uint32_t* rows) {
        const auto four = [&](int row) __attribute__((always_inline)) {
            return _mm_setr_epi32(int(table[rows[row]]), int(table[rows[row + 1]]), int(table[rows[row + 2]]), int(table[rows[row + 3]]));
        };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_inserti128_si256(_mm256_castsi128_si256(four(8)), four(12), 1), 1);
    }
    static DALI_INLINE void look_up_pairs(const uint64_t* table, const uint32_t* rows, Line& first, Line& second) {
        const __m512i a = four_pairs(table, rows), b = four_pairs(table, rows + 2);
        first = _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
        second = _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xDD));
    }
    // 128 - value for columns with a sign: bits of words, of line `i` those from 4 i on.
    template <int i>
    static Line negated(Line values, Line signs) {
        constexpr int byte = 0x01010101 * (i / 2);
        const __m512i of_row = _mm512_shuffle_epi8(signs, _mm512_set4_epi32(byte + 0x0C0C0C0C, byte + 0x08080808, byte + 0x04040404, byte));
        const __mmask64 minus = _mm512_test_epi8_mask(of_row, _mm512_set1_epi32(int(0x08040201u << (4 * (i % 2)))));
        return _mm512_mask_sub_epi8(values, minus, _mm512_set1_epi8(char(128)), values);
    }
    // Less two in rows whose word has the bit.
    template <int bit>
    static Line less_two(Line values, Line words) {
        const __mmask16 where = _mm512_test_epi32_mask(words, _mm512_set1_epi32(1 << bit));
        return _mm512_sub_epi8(values, _mm512_maskz_set1_epi32(where, 0x02020202));
    }
    // Products with activations, added in 32 bits: however many, and what they are corrected by from the start.
    using Products = Ints;
    static constexpr int most_added(int, int) { return 8; }
    static Products open(int32_t correction) { return set_ints(correction); }
    static Ints close(Products products, int32_t) { return products; }
    template <int zero>
    static Line weights(Line quants) { return quants; }
    // + the four products of each row: unsigned quants times 4 activations.
    template <int zero>
    static Products dot(Products products, Line quants, const int8_t* four) {
        int32_t word;
        __builtin_memcpy(&word, four, 4);
        return _mm512_dpbusd_epi32(products, quants, _mm512_set1_epi32(word));
    }

    static float from_half(uint16_t half) { return _cvtsh_ss(half); }
    static Floats from_halves(const uint8_t* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static Floats from_bytes(Bytes16 bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32((__m128i)bytes)); }
    static Floats from_signed_bytes(Bytes16 bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes)); }
    // 2^(byte - 128), denormal for 0 and 1.
    static Floats from_exponents(const uint8_t* from) {
        __m512i e = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
        __m512i normal = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        __m512i tiny = _mm512_sllv_epi32(_mm512_set1_epi32(0x00200000), e);
        return _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)), tiny));
    }
    // Half of what a float of 4 bits of exponent and 3 of mantissa stands for; its sign does not count.
    static Floats from_e4m3(Bytes16 bytes) {
        const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu8_epi32((__m128i)(bytes & 127)), 20);
        return _mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(0x1p119f));
    }
    // The even and the odd column of a line of 16-bit floats.
    static void from_bf16(Line line, Floats& even, Floats& odd) {
        even = _mm512_castsi512_ps(_mm512_slli_epi32(line, 16));
        odd = _mm512_castsi512_ps(_mm512_and_si512(line, _mm512_set1_epi32(int(0xFFFF0000))));
    }
    static void from_f16(Line line, Floats& even, Floats& odd) {
        even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(line));
        odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(line, 16)));
    }

    // Bits of the largest magnitude of 32 floats; NaN ranks above infinity.
    static uint32_t largest_magnitude(const float* values) {
        const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
        __m512i a = _mm512_and_si512(_mm512_loadu_si512(values), magnitude);
        __m512i b = _mm512_and_si512(_mm512_loadu_si512(values + 16), magnitude);
        return _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
    }
    // Rounds 32 values * factor (to even, within int8) into `quants`; returns their sum.
    static int32_t round_group(const float* values, float factor, int8_t* quants) {
        __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values), set(factor)));
        __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(values + 16), set(factor)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(quants), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(quants + 16), _mm512_cvtepi32_epi8(b));
        return _mm512_reduce_add_epi32(_mm512_add_epi32(a, b));
    }

  private:
    // Entries of rows 0 and 1, 4 and 5, 8 and 9, 12 and 13.
    static DALI_INLINE __m512i four_pairs(const uint64_t* table, const uint32_t* rows) {
        const auto two = [&](int row) __attribute__((always_inline)) {
            const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(table + rows[row]));
            return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(table + rows[row + 1])));
        };
        const __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(two(0)), two(4), 1);
        return _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_inserti128_si256(_mm256_castsi128_si256(two(8)), two(12), 1), 1);
    }
    template <int from, int to>
    static Line shifted(Line line) {
        if constexpr (from > to) return _mm512_srli_epi16(line, from - to);
        else if constexpr (from < to) return _mm512_slli_epi16(line, to - from);
        else return line;
    }
};

}  // namespace dali
