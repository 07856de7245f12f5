// What a group of 32 columns holds in the formats whose codes are looked up in grids: see kernels/groups.h. Words of a row in a group:
//
//   codes    a byte each: IQ3's 8 stand for 4 columns each, in two words; others' 4 for 8 columns, in the order 0, 2, 1, 3
//   signs    (not IQ1) bit k of byte b: of column 4 b + k, bit 4 + k: of column 16 + 4 b + k. Files of types that keep 7 signs of 8 leave
//            columns 7, 15, 23 and 31 out, whose signs make the number of minus signs even: bits 11, 27, 15 and 31 of the word, which
//            hold a scale of 4 bits (IQ3_XXS, IQ2_XXS; its lowest bits in 11 and 15), or each code's bit 8 (IQ2_XS)
//
// Lines come in one of two orders. Where words are looked up, line i has columns 4 i to 4 i + 3 of each row, as in all formats. Where bytes
// are (`V::transposed`), byte b of line 4 h + k is column 16 h + 4 b + k: what all codes of a line say of one of their columns. The
// activations are in the same order (TileKernels::fill).
#pragma once

#include <cstdint>
#include <utility>

#include "lanes/bytes.h"
#include "layout/grids.h"

namespace dali {

template <class V, Format format>
struct Coded {
    using Floats = typename V::Floats;
    using Line = typename V::Line;

    static constexpr int table = grid_of(format);
    static constexpr int words_of_codes = code_columns(format) == 4 ? 2 : 1;
    static constexpr bool seven_signs = format == Format::iq3_xxs || format == Format::iq2_xs || format == Format::iq2_xxs;
    static constexpr uint32_t eighth_signs = 0x88008800u;

    template <int... i, class F>
    static DALI_INLINE void each(std::integer_sequence<int, i...>, F f) {
        (f(std::integral_constant<int, i>{}), ...);
    }
    template <int count, class F>
    static DALI_INLINE void each(F f) {
        each(std::make_integer_sequence<int, count>{}, f);
    }

    static DALI_INLINE Line all_signs(Line word) {
        if constexpr (!seven_signs) return word;
        const Line seven = V::template kept<~eighth_signs>(word);
        Line odd = V::differ(seven, V::template word_bits<0, 8, 24>(seven));  // of both nibbles of an entry, in the second one's byte
        odd = V::differ(odd, V::template word_bits<0, 2, 30>(odd));
        odd = V::differ(odd, V::template word_bits<0, 1, 31>(odd));
        return V::either(seven, V::template kept<eighth_signs>(odd));
    }

    // Words of the codes' bits from the eighth on, and what tells whether IQ1's weights are moved down, wherever the format has them.
    static DALI_INLINE Line high_bits(const uint8_t* block, int group, Line signs) {
        if constexpr (format == Format::iq3_s || format == Format::iq2_s) return V::words_of_bytes(bytes_at(block + 32 + 16 * group));
        if constexpr (format == Format::iq1_s || format == Format::iq1_m) return V::words_of_halves(block + 32 + 32 * group);
        return signs;
    }

    // Code `i` of the group, in words: its bits from the eighth on are put above those of its byte.
    template <int i>
    static DALI_INLINE Line code(const Line* bytes, Line high) {
        constexpr int place[4] = {0, 2, 1, 3};
        if constexpr (words_of_codes == 2) {
            const Line low = V::template word_bits<8 * (i % 4), 0, 8>(bytes[i / 4]);
            if constexpr (format == Format::iq3_s) return V::either(low, V::template word_bits<i, 8, 1>(high));
            return low;
        } else {
            constexpr int hole[4] = {11, 27, 15, 31};
            const Line low = V::template word_bits<8 * place[i], 0, 8>(bytes[0]);
            if constexpr (format == Format::iq2_xs) return V::either(low, V::template word_bits<hole[i], 8, 1>(high));
            if constexpr (format == Format::iq2_s) return V::either(low, V::template word_bits<2 * i, 8, 2>(high));
            if constexpr (format == Format::iq1_m) return V::either(low, V::template word_bits<4 * i, 8, 4>(high));
            if constexpr (format == Format::iq1_s) {
                const Line more = V::template word_bits<3 * i, 8, 3>(high);
                return V::either(V::either(low, more), V::template word_bits<15, 11, 1>(high));
            }
            return low;
        }
    }

    static DALI_INLINE void look_up_words(const Line* bytes, Line high, Line* lines) {
        const Grid& grid = grids[table];
        each<4 * words_of_codes>([&](auto number) __attribute__((always_inline)) {
            constexpr int i = number;
            const Line word = V::look_up_words(grid.words, code<i>(bytes, high));
            if constexpr (words_of_codes == 2) {
                lines[i] = word;
            } else {
                lines[2 * i] = V::look_up(grid.values, V::template bits<0, 0, 4>(word));
                lines[2 * i + 1] = V::look_up(grid.values, V::template bits<4, 0, 4>(word));
            }
        });
    }

    // Which bytes' codes have bit 8, bit 9 and bit 10. `half`: of IQ3's codes.
    template <class Mask>
    static DALI_INLINE void high_masks(Line high, int half, Mask* masks) {
        if constexpr (format == Format::iq3_s) {
            masks[0] = V::bytes_with(V::template spread<0, 0, 0, 0>(high), half ? 0x80402010u : 0x08040201u);
        } else if constexpr (format == Format::iq2_xs) {
            masks[0] = V::bytes_with(V::template spread<1, 1, 3, 3>(high), 0x80088008u);
        } else if constexpr (format == Format::iq2_s) {
            const Line all = V::template spread<0, 0, 0, 0>(high);
            masks[0] = V::bytes_with(all, 0x40041001u);
            masks[1] = V::bytes_with(all, 0x80082002u);
        } else if constexpr (format == Format::iq1_s) {
            const Line first = V::template spread<0, 0, 0, 1>(high);
            masks[0] = V::bytes_with(first, 0x02084001u);
            masks[1] = V::bytes_with(first, 0x04108002u);
            masks[2] = V::bytes_with(V::template spread<0, 1, 0, 1>(high), 0x08200104u);
        } else if constexpr (format == Format::iq1_m) {
            const Line all = V::template spread<0, 1, 0, 1>(high);
            for (int bit = 0; bit < 3; bit++) masks[bit] = V::bytes_with(all, 0x10100101u << bit);
        }
    }

    static DALI_INLINE void look_up_bytes(const Line* bytes, Line high, Line* lines) {
        const Grid& grid = grids[table];
        typename V::Mask masks[3];
        for (int half = 0; half < words_of_codes; half++) {
            high_masks(high, half, masks);
            const Line first = V::template look_up_bytes<codes(format)>(grid.places[0], bytes[half], masks);
            const Line second = V::template look_up_bytes<codes(format)>(grid.places[1], bytes[half], masks);
            if constexpr (words_of_codes == 2) {
                Line* to = lines + 4 * half;
                to[0] = V::look_up_six_bits(grid.fields[0], first);
                to[1] = V::look_up_six_bits(grid.fields[1], first);
                to[2] = V::look_up_six_bits(grid.fields[0], second);
                to[3] = V::look_up_six_bits(grid.fields[1], second);
            } else {
                const Line by_half[2] = {V::even_bytes(first, second), V::odd_bytes(first, second)};  // of codes 0 and 1, of 2 and 3
                for (int h = 0; h < 2; h++) {
                    for (int field = 0; field < 3; field++) lines[4 * h + field] = V::look_up_six_bits(grid.fields[field], by_half[h]);
                    lines[4 * h + 3] = V::look_up_six_bits(grid.fields[0], V::template bits<6, 0, 2>(by_half[h]));
                }
            }
        }
    }

    // IQ1's weights, moved up so far, down by two eighths where that is told.
    static DALI_INLINE void move_down(Line high, Line* lines) {
        constexpr bool apart = format == Format::iq1_m;  // each code for itself
        const typename V::Mask first = V::bytes_with(apart ? V::template spread<0, 0, 0, 0>(high) : V::template spread<1, 1, 1, 1>(high),
                                                     apart ? 0x80800808u : 0x80808080u);
        const typename V::Mask second = apart ? V::bytes_with(V::template spread<1, 1, 1, 1>(high), 0x80800808u) : first;
        for (int i = 0; i < 8; i++) lines[i] = V::less_two(lines[i], i < 4 ? first : second);
    }

    static DALI_INLINE void read(const uint8_t* body, const uint8_t* block, int group, Line* lines) {
        Line words[3];
        for (int i = 0; i < bits(format); i++) words[i] = V::load_line(body + LINE * i);
        const Line word = words[bits(format) - 1], high = high_bits(block, group, word);
        if constexpr (V::transposed) {
            look_up_bytes(words, high, lines);
            if constexpr (bits(format) == 1) move_down(high, lines);
        } else {
            look_up_words(words, high, lines);
        }
        if constexpr (bits(format) > 1) {
            const Line signs = all_signs(word);
            each<8>([&](auto number) __attribute__((always_inline)) {
                constexpr int i = number;
                lines[i] = V::template negated<i>(lines[i], signs);
            });
        }
    }

    // d times (a number and a half), times `step`: exact, as all but the last factor have few bits.
    static Floats scaled(const uint8_t* block, Floats number, float step) {
        return V::mul(V::fma(number, V::set(step), V::set(step / 2)), V::from_halves(block));
    }

    static DALI_INLINE void read_scales(const uint8_t* body, const uint8_t* block, int group, Floats* scale) {
        constexpr float step = format == Format::iq3_s ? 2.0f : format == Format::iq3_xxs ? 0.5f : 0.25f;
        if constexpr (format == Format::iq3_s) {
            scale[0] = scaled(block, V::from_bytes(bytes_at(block + 160 + 16 * (group / 2)) >> (4 * (group % 2)) & 15), step);
        } else if constexpr (format == Format::iq2_s || format == Format::iq2_xs) {
            const Bytes16 both = bytes_at(block + (format == Format::iq2_s ? 160 : 32) + 16 * group);
            scale[0] = scaled(block, V::from_bytes(both & 15), step);
            scale[1] = scaled(block, V::from_bytes(both >> 4), step);
        } else if constexpr (format == Format::iq1_s) {
            const Line number = V::template word_bits<12, 0, 3>(V::words_of_halves(block + 32 + 32 * group));
            scale[0] = scaled(block, V::byte_of(number, 0), step);
        } else if constexpr (format == Format::iq1_m) {  // two numbers of 3 bits: 4 bits of both, and 2 bits apart
            const Bytes16 low = bytes_at(block + 288 + 16 * (group / 2)) >> (4 * (group % 2)) & 15;
            const Bytes16 high = bytes_at(block + 352 + 16 * (group / 4)) >> (2 * (group % 4)) & 3;
            scale[0] = scaled(block, V::from_bytes(low & 7), step);
            scale[1] = scaled(block, V::from_bytes(low >> 3 | high << 1), step);
        } else {
            const Line word = V::load_line(body + LINE * (bits(format) - 1));
            const Line pairs = V::template add_bits<7, 1, 1>(V::template bits<3, 0, 1>(word), word);  // in bytes 1 and 3
            scale[0] = scaled(block, V::fma(V::byte_of(pairs, 3), V::set(4), V::byte_of(pairs, 1)), step);
        }
    }
};

}  // namespace dali
