// Codes that are looked up 64 at a time, a byte each, in tables that lie in registers (lanes/avx512_vbmi.h): see kernels/coded.h.
//
// A table gives two bytes for a code, with the places of its first weights and of its last ones among the format's values. What a line's
// bytes then are is looked up once more, by six bits: a weight's place and its sign, which takes the bits of another weight's place.
#pragma once

#include <cstdint>

#include "lanes/bytes.h"
#include "layout/grids.h"

namespace dali {

template <class V, Format format>
struct CodesByByte {
    using Line = typename V::Line;

    static constexpr int words_of_codes = code_columns(format) == 4 ? 2 : 1;
    static constexpr bool halves = traits(format).halves;

    struct Block {};  // nothing is kept of it
    static void prepare(const Line*, Line, int, Block&) {}

    // Which bytes' codes have bit 8, bit 9 and bit 10. `half`: of IQ3's codes.
    template <class Mask>
    static DALI_INLINE void high_masks(Line high, int half, Mask* masks) {
        if constexpr (format == Format::iq3_s) {
            masks[0] = V::bytes_with(V::template spread<0, 0, 0, 0>(high), half ? 0x80402010u : 0x08040201u);
        } else if constexpr (format == Format::iq2_xs) {
            masks[0] = V::bytes_with(high, 0x01010101u);
        } else if constexpr (format == Format::iq2_s) {
            const Line all = V::template spread<0, 0, 0, 0>(high);
            masks[0] = V::bytes_with(all, 0x40100401u);
            masks[1] = V::bytes_with(all, 0x80200802u);
        } else if constexpr (format == Format::iq1_s) {
            const Line first = V::template spread<0, 0, 0, 1>(high);
            masks[0] = V::bytes_with(first, 0x02400801u);
            masks[1] = V::bytes_with(first, 0x04801002u);
            masks[2] = V::bytes_with(V::template spread<0, 0, 1, 1>(high), 0x08012004u);
        } else if constexpr (format == Format::iq1_m) {
            const Line all = V::template spread<0, 0, 1, 1>(high);
            for (int bit = 0; bit < 3; bit++) masks[bit] = V::bytes_with(all, 0x10011001u << bit);
        }
    }

    // The sign of column c in bit c of a row's word.
    static DALI_INLINE Line signs(Line word) {
        if constexpr (format == Format::iq2_xs) return V::eight_signs(V::template down<1>(word));
        if constexpr (format == Format::iq3_xxs || format == Format::iq2_xxs) {
            return V::eight_signs(V::template bytes_from<0, 7, 14, 21>(word));
        }
        return word;
    }

    // Codes of four columns: of half `half` of a group, columns 0 to 3 of all of them in turn. A place takes three bits, and the sign one of
    // the other three, where it comes to lie.
    static DALI_INLINE void four_columns(Line first, Line last, Line word, int half, Line* lines) {
        const Line upper = half ? V::template bytes_from<13, 17, 21, 25>(word) : V::template bytes_from<61, 1, 5, 9>(word);
        const Line lower = half ? V::template bytes_from<17, 21, 25, 29>(word) : V::template bytes_from<1, 5, 9, 13>(word);
        const Grid& grid = grids[grid_of(format)];
        lines[0] = V::look_up_six_bits(grid.fields[0], V::template mixed<0x38>(first, upper));
        lines[1] = V::look_up_six_bits(grid.fields[1], V::template mixed<0x07>(first, lower));
        lines[2] = V::look_up_six_bits(grid.fields[2], V::template mixed<0x38>(last, upper));
        lines[3] = V::look_up_six_bits(grid.fields[3], V::template mixed<0x07>(last, lower));
    }

    // Four columns of each code of eight, all of one half of a code, whose places take two bits each: with those of columns 0 and 1, and with
    // those of 2 and 3, their signs instead of the other two's places.
    static DALI_INLINE void look_up_fields(Line of_first, Line of_last, Line* lines) {
        const Grid& grid = grids[grid_of(format)];
        lines[0] = V::look_up_six_bits(grid.fields[0], of_first);
        lines[1] = V::look_up_six_bits(grid.fields[1], of_first);
        lines[2] = V::look_up_six_bits(grid.fields[2], of_last);
        lines[3] = V::look_up_six_bits(grid.fields[3], V::template down<2>(of_last));
    }

    // Where 16 columns share a scale, codes 0 and 1 of a group have lines of their own, and codes 2 and 3.
    static DALI_INLINE void eight_columns(const Line (&of_first)[2], const Line (&of_last)[2], Line* lines) {
        if constexpr (halves) {
            look_up_fields(V::low_halves(of_first[0], of_first[1]), V::low_halves(of_last[0], of_last[1]), lines);
            look_up_fields(V::high_halves(of_first[0], of_first[1]), V::high_halves(of_last[0], of_last[1]), lines + 4);
        } else {
            for (int part = 0; part < 2; part++) look_up_fields(of_first[part], of_last[part], lines + 4 * part);
        }
    }

    // IQ1's weights, moved up so far, down by two eighths where that is told.
    static DALI_INLINE void move_down(Line high, Line* lines) {
        const auto mask = [&](Line told) { return V::bytes_with(told, halves ? 0x80088008u : 0x80808080u); };
        const typename V::Mask last = mask(V::template spread<1, 1, 1, 1>(high));
        const typename V::Mask first = halves ? mask(V::template spread<0, 0, 0, 0>(high)) : last;
        for (int i = 0; i < 8; i++) lines[i] = V::less_two(lines[i], i < 4 ? first : last);
    }

    // codes: the lines of a group's codes; word: of its signs; high: as Coded::high_bits.
    static DALI_INLINE void read(const Block&, int, const Line* codes, Line word, Line high, Line* lines) {
        const Grid& grid = grids[grid_of(format)];
        typename V::Mask masks[3];
        const Line minus = signs(word);
        for (int half = 0; half < words_of_codes; half++) {
            high_masks(high, half, masks);
            const Line first = V::template look_up_bytes<dali::codes(format)>(grid.places[0], codes[half], masks);
            const Line last = V::template look_up_bytes<dali::codes(format)>(grid.places[1], codes[half], masks);
            if constexpr (words_of_codes == 2) {
                four_columns(first, last, minus, half, lines + 4 * half);
            } else if constexpr (bits(format) == 1) {
                eight_columns({first, last}, {first, last}, lines);
            } else {
                eight_columns({V::template mixed<0x30>(first, V::template up<4>(minus)), V::template mixed<0x30>(last, minus)},
                              {V::template mixed<0x0F>(first, minus), V::template mixed<0x0F>(last, V::template down<4>(minus))}, lines);
            }
        }
        if constexpr (bits(format) == 1) move_down(high, lines);
    }
};

}  // namespace dali
