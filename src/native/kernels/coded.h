// What a group of 32 columns holds in the formats whose codes are looked up in grids: see kernels/groups.h. Words of a row in a group:
//
//   codes    a byte each: IQ3's 8 stand for 4 columns each, in two words; others' 4 for 8 columns
//   signs    (not IQ1) IQ3_S, IQ2_S: bit c of column c. IQ3_XXS, IQ2_XXS: bit 7 i + k of column 8 i + k, and a scale in the last four bits.
//            IQ2_XS: bit 8 i + 1 + k of column 8 i + k, and code i's bit 8 in bit 8 i. Where 7 of 8 signs are kept, the number of minus
//            signs is even.
//
// Lines come in one of two orders. Where words are looked up, line i has columns 4 i to 4 i + 3 of each row, as in all formats. Where bytes
// are (`V::transposed`), a line has what all codes that are looked up together say of one of their columns. The activations are in the same
// order (TileKernels::fill).
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/codes_by_byte.h"
#include "kernels/codes_by_word.h"

namespace dali {

// The column of a group that byte `byte` of a row's four in line `line` has.
constexpr int column_of(Format format, bool transposed, int line, int byte) {
    if (!transposed || !is_grid(format)) return 4 * line + byte;
    const int part = line / 4, column = line % 4;
    if (code_columns(format) == 4) return 16 * part + 4 * byte + column;
    if (!traits(format).halves) return 8 * byte + 4 * part + column;
    return 16 * part + 8 * (byte % 2) + 4 * (byte / 2) + column;
}

template <class V, Format format>
struct Coded {
    using Floats = typename V::Floats;
    using Line = typename V::Line;
    using Codes = std::conditional_t<V::transposed, CodesByByte<V, format>, CodesByWord<V, format>>;

    // Words of the codes' bits from the eighth on, and what tells whether IQ1's weights are moved down, wherever the format has them.
    static DALI_INLINE Line high_bits(const uint8_t* block, int group, Line signs) {
        if constexpr (format == Format::iq3_s || format == Format::iq2_s) return V::words_of_bytes(bytes_at(block + 32 + 16 * group));
        if constexpr (format == Format::iq1_s || format == Format::iq1_m) return V::words_of_halves(block + 32 + 32 * group);
        return signs;
    }

    using Block = typename Codes::Block;

    // Before a block's groups are read. body: the block's words; block: its scales.
    static DALI_INLINE void prepare(const uint8_t* body, const uint8_t* block, Block& prepared) {
        for (int group = 0; group < 8; group++, body += group_bytes(format)) {
            Line words[3];
            load(body, words);
            Codes::prepare(words, high_bits(block, group, words[bits(format) - 1]), group, prepared);
        }
    }

    // body: the group's words.
    static DALI_INLINE void read(const Block& prepared, const uint8_t* body, const uint8_t* block, int group, Line* lines) {
        Line words[3];
        load(body, words);
        const Line word = words[bits(format) - 1];
        Codes::read(prepared, group, words, word, high_bits(block, group, word), lines);
    }
    static DALI_INLINE void load(const uint8_t* body, Line* words) {
        for (int i = 0; i < bits(format); i++) words[i] = V::load_line(body + LINE * i);
    }

    // d times (a number below 16 and a half), times a step: exact, as all but the last factor have few bits. The numbers are words' lowest four
    // bits.
    static Floats scaled(const uint8_t* block, Line numbers) {
        constexpr float step = format == Format::iq3_s ? 2.0f : format == Format::iq3_xxs ? 0.5f : 0.25f;
        return V::mul(V::number_and_half(numbers, step), V::from_halves(block));
    }

    static DALI_INLINE void read_scales(const uint8_t* body, const uint8_t* block, int group, Floats* scale) {
        if constexpr (format == Format::iq3_s) {
            scale[0] = scaled(block, V::words_of_bytes(bytes_at(block + 160 + 16 * (group / 2)) >> (4 * (group % 2))));
        } else if constexpr (format == Format::iq2_s || format == Format::iq2_xs) {
            const Line both = V::words_of_bytes(bytes_at(block + (format == Format::iq2_s ? 160 : 32) + 16 * group));
            scale[0] = scaled(block, both);
            scale[1] = scaled(block, V::template word_bits<4, 0, 28>(both));
        } else if constexpr (format == Format::iq1_s) {
            scale[0] = scaled(block, V::template word_bits<12, 0, 3>(V::words_of_halves(block + 32 + 32 * group)));
        } else if constexpr (format == Format::iq1_m) {  // two numbers of 3 bits: 4 bits of both, and 2 bits apart
            const Bytes16 low = bytes_at(block + 288 + 16 * (group / 2)) >> (4 * (group % 2)) & 15;
            const Bytes16 high = bytes_at(block + 352 + 16 * (group / 4)) >> (2 * (group % 4)) & 3;
            scale[0] = scaled(block, V::words_of_bytes(low & 7));
            scale[1] = scaled(block, V::words_of_bytes(low >> 3 | high << 1));
        } else {
            const Line word = V::load_line(body + LINE * (bits(format) - 1));
            scale[0] = scaled(block, V::template word_bits<28, 0, 4>(word));
        }
    }
};

}  // namespace dali
