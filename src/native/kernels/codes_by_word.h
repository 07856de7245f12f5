// Codes that are looked up one by one, each row's weights as they are: see kernels/coded.h.
#pragma once

#include <cstdint>
#include <utility>

#include "lanes/bytes.h"
#include "layout/grids.h"

namespace dali {

template <class V, Format format>
struct CodesByWord {
    using Line = typename V::Line;

    static constexpr int count = 32 / code_columns(format);  // of codes a row in a group

    // A block's codes lie here before the first one is looked up: what has just been stored, or is taken out of registers, is read far more
    // slowly.
    struct Block {
        alignas(64) uint32_t codes[8][count][TILE_ROWS];
    };

    template <int... i, class F>
    static DALI_INLINE void each(std::integer_sequence<int, i...>, F f) {
        (f(std::integral_constant<int, i>{}), ...);
    }
    template <int times, class F>
    static DALI_INLINE void each(F f) {
        each(std::make_integer_sequence<int, times>{}, f);
    }

    // Code `i` of the group, in words: its bits from the eighth on are put above those of its byte.
    template <int i>
    static DALI_INLINE Line code(const Line* bytes, Line high) {
        const Line low = V::template word_bits<8 * (i % 4), 0, 8>(bytes[i / 4]);
        if constexpr (format == Format::iq3_s) return V::either(low, V::template word_bits<i, 8, 1>(high));
        if constexpr (format == Format::iq2_s) return V::either(low, V::template word_bits<2 * i, 8, 2>(high));
        if constexpr (format == Format::iq2_xs) return V::either(low, V::template word_bits<8 * i, 8, 1>(high));
        if constexpr (format == Format::iq1_s) return V::either(low, V::template word_bits<3 * i, 8, 3>(high));
        if constexpr (format == Format::iq1_m) return V::either(low, V::template word_bits<4 * i, 8, 3>(high));
        return low;
    }

    // The sign of column c in bit c of a row's word.
    static DALI_INLINE Line signs(Line word) {
        if constexpr (format == Format::iq3_s || format == Format::iq2_s) {
            return word;
        } else {
            Line sevens;
            if constexpr (format == Format::iq2_xs) {
                sevens = V::template bits<1, 0, 7>(word);
            } else {
                sevens = V::either(V::template word_bits<0, 0, 7>(word), V::template word_bits<7, 8, 7>(word));
                sevens = V::either(sevens, V::either(V::template word_bits<14, 16, 7>(word), V::template word_bits<21, 24, 7>(word)));
            }
            Line odd = V::differ(sevens, V::template bits<0, 4, 4>(sevens));  // in its highest bits
            odd = V::differ(odd, V::template bits<4, 6, 2>(odd));
            odd = V::differ(odd, V::template bits<6, 7, 1>(odd));
            return V::template add_bits<7, 7, 1>(sevens, odd);
        }
    }

    // IQ1's weights, moved up so far, down by two eighths where that is told.
    static DALI_INLINE void move_down(Line high, Line* lines) {
        each<8>([&](auto number) __attribute__((always_inline)) {
            constexpr int i = number, bit = format == Format::iq1_m ? 4 * (i / 2) + 3 : 15;
            lines[i] = V::template less_two<bit>(lines[i], high);
        });
    }

    // Puts the codes of group `group` of a block where they are looked up from. codes: the lines of the group's codes; high: as
    // Coded::high_bits.
    static DALI_INLINE void prepare(const Line* codes, Line high, int group, Block& prepared) {
        each<count>([&](auto number) __attribute__((always_inline)) {
            constexpr int i = number;
            V::store_line(reinterpret_cast<uint8_t*>(prepared.codes[group][i]), code<i>(codes, high));
        });
    }

    // word: of the group's signs.
    static DALI_INLINE void read(const Block& prepared, int group, const Line*, Line word, Line high, Line* lines) {
        const Grid& grid = grids[grid_of(format)];
        const auto& codes = prepared.codes[group];
        each<count>([&](auto number) __attribute__((always_inline)) {
            constexpr int i = number;
            if constexpr (count == 8) lines[i] = V::look_up_words(grid.words, codes[i]);
            else V::look_up_pairs(grid.pairs, codes[i], lines[2 * i], lines[2 * i + 1]);
        });
        if constexpr (bits(format) == 1) return move_down(high, lines);
        const Line minus = signs(word);
        each<8>([&](auto number) __attribute__((always_inline)) {
            constexpr int i = number;
            lines[i] = V::template negated<i>(lines[i], minus);
        });
    }
};

}  // namespace dali
