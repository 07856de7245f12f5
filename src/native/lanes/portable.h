// 16 rows in plain C++ loops, which compilers turn into whatever vectors the target has.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "lanes/bytes.h"

namespace dali {

struct Portable {
    struct Floats {
        float v[16];
    };
    struct Ints {
        int32_t v[16];
    };
    struct Line {
        uint8_t v[64];
    };
    static constexpr int most_tokens = 4;
    static constexpr int few_tokens = 0;
    static constexpr bool centred = false;
    static constexpr bool transposed = false;

    template <class F>
    static Floats each(F f) {
        Floats out;
        for (int i = 0; i < 16; i++) out.v[i] = f(i);
        return out;
    }
    static Floats zero() { return set(0); }
    static Floats set(float value) {
        return each([&](int) { return value; });
    }
    static Floats load(const float* from) {
        return each([&](int i) { return from[i]; });
    }
    static void store(float* to, const Floats& value) { std::memcpy(to, value.v, 64); }
    static Floats add(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.v[i] + b.v[i]; });
    }
    static Floats sub(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.v[i] - b.v[i]; });
    }
    static Floats mul(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.v[i] * b.v[i]; });
    }
    static Floats div(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.v[i] / b.v[i]; });
    }
    static Floats fma(const Floats& a, const Floats& b, const Floats& c) {  // std::fma is a call where the CPU has none
        return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
    }
    static Floats fnma(const Floats& a, const Floats& b, const Floats& c) {
        return each([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
    }
    static Floats at_most(const Floats& limit, const Floats& value) {
        return each([&](int i) { return limit.v[i] < value.v[i] ? limit.v[i] : value.v[i]; });
    }
    static Floats at_least(const Floats& limit, const Floats& value) {
        return each([&](int i) { return limit.v[i] > value.v[i] ? limit.v[i] : value.v[i]; });
    }
    static Floats where_less(const Floats& a, const Floats& b, const Floats& x, const Floats& y) {
        return each([&](int i) { return a.v[i] < b.v[i] ? x.v[i] : y.v[i]; });
    }
    static Floats round(const Floats& a) {
        return each([&](int i) { return std::nearbyintf(a.v[i]); });
    }
    static Floats power_of_two(const Floats& n) {
        return each([&](int i) {  // NaN is no whole number: any result does, it meets NaN again
            return from_bits(n.v[i] >= -127 && n.v[i] <= 128 ? uint32_t(int32_t(n.v[i]) + 127) << 23 : 0);
        });
    }

    static Ints set_ints(int32_t value) {
        Ints out;
        for (int32_t& one : out.v) one = value;
        return out;
    }
    static Floats to_floats(const Ints& a) {
        return each([&](int i) { return float(a.v[i]); });
    }
    static Ints add_ints(const Ints& a, const Ints& b) {
        Ints out;
        for (int i = 0; i < 16; i++) out.v[i] = a.v[i] + b.v[i];
        return out;
    }

    static Line load_line(const uint8_t* from) {
        Line out;
        std::memcpy(out.v, from, 64);
        return out;
    }
    static void store_line(uint8_t* to, const Line& line) { std::memcpy(to, line.v, 64); }
    template <int from, int to, int width>
    static Line bits(const Line& line) {
        Line out;
        for (int i = 0; i < 64; i++) out.v[i] = uint8_t((line.v[i] >> from & ((1 << width) - 1)) << to);
        return out;
    }
    template <int from, int to, int width>
    static Line add_bits(const Line& base, const Line& line) {
        Line out = bits<from, to, width>(line);
        for (int i = 0; i < 64; i++) out.v[i] |= base.v[i];
        return out;
    }
    static Floats byte_of(const Line& line, int at) {
        return each([&](int i) { return float(line.v[4 * i + at]); });
    }
    static Line look_up(const uint8_t* table16, const Line& codes) {
        Line out;
        for (int i = 0; i < 64; i++) out.v[i] = table16[codes.v[i]];
        return out;
    }
    template <class F>
    static Line each_word(F f) {
        uint32_t words[16];
        for (int i = 0; i < 16; i++) words[i] = f(i);
        Line out;
        std::memcpy(out.v, words, 64);
        return out;
    }
    static uint32_t word(const Line& line, int row) {
        uint32_t value;
        std::memcpy(&value, line.v + 4 * row, 4);
        return value;
    }
    template <int from, int to, int width>
    static Line word_bits(const Line& line) {
        return each_word([&](int i) { return uint32_t((word(line, i) >> from & ((uint64_t(1) << width) - 1)) << to); });
    }
    template <uint32_t mask>
    static Line kept(const Line& line) {
        return each_word([&](int i) { return word(line, i) & mask; });
    }
    static Line either(const Line& a, const Line& b) {
        return each_word([&](int i) { return word(a, i) | word(b, i); });
    }
    static Line differ(const Line& a, const Line& b) {
        return each_word([&](int i) { return word(a, i) ^ word(b, i); });
    }
    static Floats number_and_half(const Line& words, float step) {
        return each([&](int i) { return float(word(words, i) & 15) * step + step / 2; });
    }
    static Line words_of_bytes(Bytes16 bytes) {
        return each_word([&](int i) { return uint32_t(bytes[i]); });
    }
    static Line words_of_halves(const uint8_t* from) {
        return each_word([&](int i) { return uint32_t(from[2 * i] | from[2 * i + 1] << 8); });
    }
    static Line look_up_words(const uint32_t* table, const uint32_t* rows) {
        return each_word([&](int i) { return table[rows[i]]; });
    }
    static void look_up_pairs(const uint64_t* table, const uint32_t* rows, Line& first, Line& second) {
        first = each_word([&](int i) { return uint32_t(table[rows[i]]); });
        second = each_word([&](int i) { return uint32_t(table[rows[i]] >> 32); });
    }
    template <int i>
    static Line negated(const Line& values, const Line& signs) {
        Line out;
        for (int at = 0; at < 64; at++) {
            const bool minus = word(signs, at / 4) >> (4 * i + at % 4) & 1;
            out.v[at] = uint8_t(minus ? 128 - values.v[at] : values.v[at]);
        }
        return out;
    }
    template <int bit>
    static Line less_two(const Line& values, const Line& words) {
        Line out;
        for (int at = 0; at < 64; at++) out.v[at] = uint8_t(values.v[at] - 2 * (word(words, at / 4) >> bit & 1));
        return out;
    }
    using Products = Ints;
    static constexpr int most_added(int, int) { return 8; }
    static Products open(int32_t correction) { return set_ints(correction); }
    static Ints close(const Products& products, int32_t) { return products; }
    template <int zero>
    static const Line& weights(const Line& quants) { return quants; }
    template <int zero>
    static Products dot(const Products& sum, const Line& quants, const int8_t* four) {
        Ints out;
        for (int i = 0; i < 16; i++) {
            const uint8_t* q = quants.v + 4 * i;
            out.v[i] = sum.v[i] + q[0] * four[0] + q[1] * four[1] + q[2] * four[2] + q[3] * four[3];
        }
        return out;
    }

    static Floats from_halves(const uint8_t* from) {
        uint16_t half[16];
        std::memcpy(half, from, 32);
        return each([&](int i) { return from_half(half[i]); });
    }
    static Floats from_bytes(Bytes16 bytes) {
        return each([&](int i) { return float(bytes[i]); });
    }
    static Floats from_signed_bytes(Bytes16 bytes) {
        return each([&](int i) { return float(int8_t(bytes[i])); });
    }
    static Floats from_exponents(const uint8_t* from) {
        return each([&](int i) {
            const uint32_t e = from[i];
            return from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        });
    }
    static Floats from_e4m3(Bytes16 bytes) {
        return each([&](int i) { return from_bits(uint32_t(bytes[i] & 127) << 20) * 0x1p119f; });
    }
    static void from_bf16(const Line& line, Floats& even, Floats& odd) {
        uint32_t words[16];
        std::memcpy(words, line.v, 64);
        even = each([&](int i) { return from_bits(words[i] << 16); });
        odd = each([&](int i) { return from_bits(words[i] & 0xFFFF0000u); });
    }
    static void from_f16(const Line& line, Floats& even, Floats& odd) {
        uint32_t words[16];
        std::memcpy(words, line.v, 64);
        even = each([&](int i) { return from_half(uint16_t(words[i])); });
        odd = each([&](int i) { return from_half(uint16_t(words[i] >> 16)); });
    }

    static uint32_t largest_magnitude(const float* values) {
        uint32_t largest = 0;
        for (int i = 0; i < 32; i++) {
            uint32_t bits;
            std::memcpy(&bits, values + i, 4);
            bits &= 0x7FFFFFFFu;
            largest = bits > largest ? bits : largest;
        }
        return largest;
    }
    static int32_t round_group(const float* values, float factor, int8_t* quants) {
        int32_t sum = 0;
        for (int i = 0; i < 32; i++) {
            quants[i] = int8_t(std::nearbyintf(values[i] * factor));
            sum += quants[i];
        }
        return sum;
    }

    static float from_half(uint16_t half) {
        const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7FFF;
        if (magnitude >= 0x7C00) return from_bits(sign | 0x7F800000u | (magnitude & 0x3FF) << 13);
        if (magnitude < 0x0400) return from_bits(sign | to_bits(float(magnitude) * 0x1p-24f));
        return from_bits(sign | ((magnitude << 13) + 0x38000000u));
    }

  private:
    static float from_bits(uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    static uint32_t to_bits(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        return bits;
    }
};

}  // namespace dali
