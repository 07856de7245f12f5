// 16 rows in two registers: AVX2 with FMA and F16C, with or without AVX-VNNI.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "lanes/bytes.h"

namespace dali {

template <bool vnni>
struct Avx2 {
    struct Floats {
        __m256 a, b;
    };
    struct Ints {
        __m256i a, b;
    };
    using Line = Ints;
    static constexpr int most_tokens = vnni ? 6 : 4;
    static constexpr int few_tokens = 2;
    static constexpr bool centred = !vnni;
    static constexpr bool transposed = false;

    static Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
    static Floats set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static void store(float* to, Floats value) {
        _mm256_storeu_ps(to, value.a);
        _mm256_storeu_ps(to + 8, value.b);
    }
    static Floats add(Floats x, Floats y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static Floats sub(Floats x, Floats y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static Floats mul(Floats x, Floats y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static Floats div(Floats x, Floats y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static Floats fma(Floats x, Floats y, Floats z) {
        return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
    }
    static Floats fnma(Floats x, Floats y, Floats z) {
        return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
    }
    static Floats at_most(Floats limit, Floats value) {
        return {_mm256_min_ps(limit.a, value.a), _mm256_min_ps(limit.b, value.b)};
    }
    static Floats at_least(Floats limit, Floats value) {
        return {_mm256_max_ps(limit.a, value.a), _mm256_max_ps(limit.b, value.b)};
    }
    static Floats where_less(Floats a, Floats b, Floats x, Floats y) {
        return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
                _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
    }
    static Floats round(Floats x) {
        constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
    }
    static Floats power_of_two(Floats n) { return {power_of_two(n.a), power_of_two(n.b)}; }

    static Ints set_ints(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
    static Floats to_floats(Ints x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    static Ints add_ints(Ints x, Ints y) { return in_order({_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}); }

    static Line load_line(const uint8_t* from) {
        const __m256i* at = reinterpret_cast<const __m256i*>(from);
        return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
    }
    static void store_line(uint8_t* to, Line line) {
        __m256i* at = reinterpret_cast<__m256i*>(to);
        _mm256_storeu_si256(at, line.a);
        _mm256_storeu_si256(at + 1, line.b);
    }
    template <int from, int to, int width>
    static Line bits(Line line) {
        return {bits<from, to, width>(line.a), bits<from, to, width>(line.b)};
    }
    template <int from, int to, int width>
    static Line add_bits(Line base, Line line) {
        return {_mm256_or_si256(base.a, bits<from, to, width>(line.a)), _mm256_or_si256(base.b, bits<from, to, width>(line.b))};
    }
    static Floats byte_of(Line line, int at) { return {byte_of(line.a, at), byte_of(line.b, at)}; }
    static Line look_up(const uint8_t* table16, Line codes) {
        const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table16)));
        return {_mm256_shuffle_epi8(table, codes.a), _mm256_shuffle_epi8(table, codes.b)};
    }
    template <int from, int to, int width>
    static Line word_bits(Line line) {
        return {word_bits<from, to, width>(line.a), word_bits<from, to, width>(line.b)};
    }
    template <uint32_t mask>
    static Line kept(Line line) {
        return {_mm256_and_si256(line.a, _mm256_set1_epi32(int(mask))), _mm256_and_si256(line.b, _mm256_set1_epi32(int(mask)))};
    }
    static Line either(Line x, Line y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
    static Line differ(Line x, Line y) { return {_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
    static Floats number_and_half(Line words, float step) {
        return fma(to_floats(word_bits<0, 0, 4>(words)), set(step), set(step / 2));
    }
    static Line words_of_bytes(Bytes16 bytes) { return widen(bytes); }
    static Line words_of_halves(const uint8_t* from) {
        const __m128i* at = reinterpret_cast<const __m128i*>(from);
        return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
    }
    static DALI_INLINE Line look_up_words(const uint32_t* table, const uint32_t* rows) { return {eight_words(table, rows), eight_words(table, rows + 8)}; }
    static DALI_INLINE void look_up_pairs(const uint64_t* table, const uint32_t* rows, Line& first, Line& second) {
        eight_pairs(table, rows, first.a, second.a);
        eight_pairs(table, rows + 8, first.b, second.b);
    }
    template <int i>
    static Line negated(Line values, Line signs) {
        return {negated<i>(values.a, signs.a), negated<i>(values.b, signs.b)};
    }
    template <int bit>
    static Line less_two(Line values, Line words) {
        return {less_two<bit>(values.a, words.a), less_two<bit>(values.b, words.b)};
    }
    // Products with activations. With VNNI they are added in 32 bits, and corrected from the start. Without it in 16 bits first, two and
    // two: as many as surely fit are widened and corrected together.
    using Products = Ints;
    static constexpr int most_added(int most, int zero) { return vnni ? 8 : 0x7FFF / (2 * 127 * (zero == 128 ? 128 : most)); }
    static Products open(int32_t correction) { return set_ints(vnni ? correction : 0); }
    static Ints close(Products products, int32_t correction) {
        if constexpr (vnni) return products;
        const __m256i ones = _mm256_set1_epi16(1);
        return add_ints({_mm256_madd_epi16(products.a, ones), _mm256_madd_epi16(products.b, ones)}, set_ints(correction));
    }
    // Without VNNI, w8 is multiplied with its zero point already taken off, magnitudes times activations with the weights' signs:
    // 255 * 127 * 2 would not fit 16 bits.
    struct Signed {
        Line weights, magnitudes;
    };
    template <int zero>
    static auto weights(Line quants) {
        if constexpr (vnni || zero != 128) {
            return quants;
        } else {
            const __m256i top = _mm256_set1_epi8(char(0x80));
            const Line weights{_mm256_xor_si256(quants.a, top), _mm256_xor_si256(quants.b, top)};
            return Signed{weights, {_mm256_abs_epi8(weights.a), _mm256_abs_epi8(weights.b)}};
        }
    }
    template <int zero>
    static Products dot(Products products, Line quants, const int8_t* four) {
        const __m256i x = four_of(four);
#ifdef DALI_AVX_VNNI
        if constexpr (vnni) return {_mm256_dpbusd_avx_epi32(products.a, quants.a, x), _mm256_dpbusd_avx_epi32(products.b, quants.b, x)};
#endif
        return added(products, {_mm256_maddubs_epi16(quants.a, x), _mm256_maddubs_epi16(quants.b, x)});
    }
    template <int zero>
    static Products dot(Products products, Signed by, const int8_t* four) {
        const __m256i x = four_of(four);
        return added(products, {_mm256_maddubs_epi16(by.magnitudes.a, _mm256_sign_epi8(x, by.weights.a)),
                                _mm256_maddubs_epi16(by.magnitudes.b, _mm256_sign_epi8(x, by.weights.b))});
    }

    static float from_half(uint16_t half) { return _cvtsh_ss(half); }
    static Floats from_halves(const uint8_t* from) {
        const __m128i* at = reinterpret_cast<const __m128i*>(from);
        return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
    }
    static Floats from_bytes(Bytes16 bytes) { return to_floats(widen(bytes)); }
    static Floats from_signed_bytes(Bytes16 bytes) {
        return to_floats({_mm256_cvtepi8_epi32((__m128i)bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64((__m128i)bytes, (__m128i)bytes))});
    }
    static Floats from_exponents(const uint8_t* from) {
        const Ints e = widen(bytes_at(from));
        return {exponents(e.a), exponents(e.b)};
    }
    static Floats from_e4m3(Bytes16 bytes) {
        const Ints each = widen(bytes & 127);
        return mul({_mm256_castsi256_ps(_mm256_slli_epi32(each.a, 20)), _mm256_castsi256_ps(_mm256_slli_epi32(each.b, 20))}, set(0x1p119f));
    }
    static void from_bf16(Line line, Floats& even, Floats& odd) {
        const __m256i high = _mm256_set1_epi32(int(0xFFFF0000));
        even = {_mm256_castsi256_ps(_mm256_slli_epi32(line.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(line.b, 16))};
        odd = {_mm256_castsi256_ps(_mm256_and_si256(line.a, high)), _mm256_castsi256_ps(_mm256_and_si256(line.b, high))};
    }
    static void from_f16(Line line, Floats& even, Floats& odd) {
        const __m256i low = _mm256_set1_epi32(0xFFFF);
        even = {halves(_mm256_and_si256(line.a, low)), halves(_mm256_and_si256(line.b, low))};
        odd = {halves(_mm256_srli_epi32(line.a, 16)), halves(_mm256_srli_epi32(line.b, 16))};
    }

    static uint32_t largest_magnitude(const float* values) {
        const __m256i magnitude = _mm256_set1_epi32(0x7FFFFFFF);
        __m256i most = _mm256_setzero_si256();
        for (int i = 0; i < 32; i += 8)
            most = _mm256_max_epu32(most, _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + i)), magnitude));
        alignas(32) uint32_t each[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(each), most);
        uint32_t largest = 0;
        for (uint32_t one : each) largest = one > largest ? one : largest;
        return largest;
    }
    static int32_t round_group(const float* values, float factor, int8_t* quants) {
        __m256i whole[4], sum = _mm256_setzero_si256();
        for (int i = 0; i < 4; i++) {
            whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8 * i), _mm256_set1_ps(factor)));
            sum = _mm256_add_epi32(sum, whole[i]);
        }
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(quants), _mm256_permutevar8x32_epi32(packed, order));
        alignas(32) int32_t each[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(each), sum);
        int32_t total = 0;
        for (int32_t one : each) total += one;
        return total;
    }

  private:
    static __m256 power_of_two(__m256 n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }
    // A compiler that adds integers in another order needs more registers than there are.
    static Ints in_order(Ints sums) {
        asm("" : "+x"(sums.a), "+x"(sums.b));
        return sums;
    }
    static Products added(Products x, Products y) { return in_order({_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}); }
    static __m256i four_of(const int8_t* four) {
        int32_t word;
        __builtin_memcpy(&word, four, 4);
        return _mm256_set1_epi32(word);
    }
    template <int from, int to, int width>
    static __m256i bits(__m256i line) {
        const __m256i mask = _mm256_set1_epi8(((1 << width) - 1) << to);
        if constexpr (from > to) return _mm256_and_si256(_mm256_srli_epi16(line, from - to), mask);
        else if constexpr (from < to) return _mm256_and_si256(_mm256_slli_epi16(line, to - from), mask);
        else return _mm256_and_si256(line, mask);
    }
    template <int from, int to, int width>
    static __m256i word_bits(__m256i line) {
        const __m256i moved = from > to ? _mm256_srli_epi32(line, from > to ? from - to : 0) : _mm256_slli_epi32(line, from > to ? 0 : to - from);
        if constexpr ((from > to && from + width == 32 && to == 0) || (from <= to && to + width == 32 && from == 0)) return moved;
        return _mm256_and_si256(moved, _mm256_set1_epi32(int(((uint64_t(1) << width) - 1) << to)));
    }
    template <int i>
    static __m256i negated(__m256i values, __m256i signs) {
        constexpr int byte = 0x01010101 * (i / 2);
        const __m256i order = _mm256_setr_epi32(byte, byte + 0x04040404, byte + 0x08080808, byte + 0x0C0C0C0C, byte, byte + 0x04040404,
                                                byte + 0x08080808, byte + 0x0C0C0C0C);
        const __m256i bit = _mm256_set1_epi32(int(0x08040201u << (4 * (i % 2))));
        const __m256i minus = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(signs, order), bit), bit);
        return _mm256_blendv_epi8(values, _mm256_sub_epi8(_mm256_set1_epi8(char(128)), values), minus);
    }
    template <int bit>
    static __m256i less_two(__m256i values, __m256i words) {
        const __m256i where = _mm256_srai_epi32(_mm256_slli_epi32(words, 31 - bit), 31);
        return _mm256_sub_epi8(values, _mm256_and_si256(where, _mm256_set1_epi8(2)));
    }
    static DALI_INLINE __m256i eight_words(const uint32_t* table, const uint32_t* rows) {
        const auto four = [&](int row) __attribute__((always_inline)) {
            return _mm_setr_epi32(int(table[rows[row]]), int(table[rows[row + 1]]), int(table[rows[row + 2]]), int(table[rows[row + 3]]));
        };
        return _mm256_inserti128_si256(_mm256_castsi128_si256(four(0)), four(4), 1);
    }
    // Two halves of eight rows' entries.
    static DALI_INLINE void eight_pairs(const uint64_t* table, const uint32_t* rows, __m256i& first, __m256i& second) {
        const auto two = [&](int row) __attribute__((always_inline)) {
            const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(table + rows[row]));
            return _mm_loadh_pi(_mm_castsi128_ps(low), reinterpret_cast<const __m64*>(table + rows[row + 1]));
        };
        const __m256 a = _mm256_insertf128_ps(_mm256_castps128_ps256(two(0)), two(4), 1);
        const __m256 b = _mm256_insertf128_ps(_mm256_castps128_ps256(two(2)), two(6), 1);
        first = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
        second = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD));
    }
    static __m256 byte_of(__m256i line, int at) {
        const __m256i down = _mm256_srl_epi32(line, _mm_cvtsi32_si128(8 * at));
        return _mm256_cvtepi32_ps(_mm256_and_si256(down, _mm256_set1_epi32(255)));
    }
    static Ints widen(Bytes16 bytes) {
        return {_mm256_cvtepu8_epi32((__m128i)bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64((__m128i)bytes, (__m128i)bytes))};
    }
    static __m256 exponents(__m256i e) {
        const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        const __m256i tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(normal, tiny, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
    }
    static __m256 halves(__m256i words) {  // 16 bits in each 32
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0b1000);
        return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
    }
};

}  // namespace dali
