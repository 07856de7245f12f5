// What a group of 32 columns of a tile's 16 rows holds, format by format: eight vectors of unsigned quants, of which vector i has
// columns 4 i to 4 i + 3, and the scales and minimums that belong to them (src/dali/kernels/formats.py has the layout).
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/coded.h"
#include "lanes/bytes.h"
#include "layout/format.h"

namespace dali {

template <class V>
struct Groups {
    using Floats = typename V::Floats;
    using Line = typename V::Line;

    // Vector `i` of a group: its columns 4 i to 4 i + 3. Lines of 4 bits hold vectors four apart, of 2 bits two apart, of 1 bit all; what
    // one lacks of its bits is in lines behind them.
    template <Format format, int i>
    static Line vector(const uint8_t* quants) {
        constexpr int bits = dali::bits(format), low = bits >= 4 ? 4 : 2;
        if constexpr (bits == 8) return V::load_line(quants + LINE * i);
        Line line = bits >= 4 ? V::template bits<i / 4 * 4, 0, 4>(V::load_line(quants + LINE * (i % 4)))
                              : V::template bits<i / 2 * 2, 0, 2>(V::load_line(quants + LINE * (i % 2)));
        if constexpr (bits == low + 1) line = V::template add_bits<i, low, 1>(line, V::load_line(quants + LINE * low));
        if constexpr (bits == low + 2) line = V::template add_bits<i / 2 * 2, low, 2>(line, V::load_line(quants + LINE * (low + i % 2)));
        if constexpr (format == Format::mxfp4 || format == Format::nvfp4) {  // codes stand for these values, doubled, plus 12
            alignas(16) static constexpr uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
            line = V::look_up(table, line);
        }
        if constexpr (format == Format::iq4_nl || format == Format::iq4_xs) {  // theirs, plus 128
            alignas(16) static constexpr uint8_t table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
            line = V::look_up(table, line);
        }
        return line;
    }

    // The same, where a group of codes was read as a whole.
    template <Format format, int i>
    static Line vector_of(const uint8_t* quants, const Line* lines) {
        if constexpr (is_grid(format)) return lines[i];
        else return vector<format, i>(quants);
    }

    // What is kept of a block of codes while its groups are read.
    struct Nothing {};
    template <Format format, bool = is_grid(format)>
    struct Prepared {
        using Block = typename Coded<V, format>::Block;
    };
    template <Format format>
    struct Prepared<format, false> {
        using Block = Nothing;
    };
    template <Format format>
    using Block = typename Prepared<format>::Block;

    // Before group `group` is read. quants: the group's; plane: the tile's scales.
    template <Format format>
    static DALI_INLINE void prepare(const uint8_t* quants, const uint8_t* plane, int group, Block<format>& prepared) {
        if constexpr (is_grid(format))
            if (group % 8 == 0) Coded<V, format>::prepare(quants, plane + block_scale_bytes(format) * (group / 8), prepared);
    }
    // All vectors of a group.
    template <Format format>
    static DALI_INLINE void read(const Block<format>& prepared, const uint8_t* quants, const uint8_t* plane, int group, Line* lines) {
        if constexpr (is_grid(format)) Coded<V, format>::read(prepared, quants, plane + block_scale_bytes(format) * (group / 8), group % 8, lines);
        else read_each<format>(quants, lines, std::make_integer_sequence<int, 8>{});
    }
    template <Format format, int... i>
    static void read_each(const uint8_t* quants, Line* lines, std::integer_sequence<int, i...>) {
        ((lines[i] = vector<format, i>(quants)), ...);
    }

    // Two numbers of six bits a group: eight bytes with both low nibbles, four with two groups' higher bits.
    static void six_bits(const uint8_t* from, int group, Bytes16& first, Bytes16& second) {
        const Bytes16 low = bytes_at(from + TILE_ROWS * group), high = bytes_at(from + TILE_ROWS * (8 + group / 2)) >> (4 * (group % 2));
        first = (low & 15) | (high & 3) << 4;
        second = low >> 4 | (high & 12) << 2;
    }

    // The scales of group `group`'s columns, one or two (halves), and what is taken off where the format has minimums.
    template <Format format>
    static DALI_INLINE void read_scales(const uint8_t* quants, const uint8_t* plane, int group, Floats* scale, Floats* minimum) {
        const uint8_t* block = plane + block_scale_bytes(format) * (group * GROUP / block_columns(format));
        if constexpr (is_grid(format)) {
            Coded<V, format>::read_scales(quants, block, group % 8, scale);
        } else if constexpr (is_decoded(format)) {
            const float* scales = reinterpret_cast<const float*>(block);
            for (int part = 0; part < scales_of_group(format); part++) scale[part] = V::load(scales + TILE_ROWS * part);
        } else if constexpr (format == Format::mxfp4) {
            scale[0] = V::from_exponents(block);
        } else if constexpr (format == Format::q4k || format == Format::q5k) {
            Bytes16 times, least;
            six_bits(block + 64, group % 8, times, least);
            scale[0] = V::mul(V::from_bytes(times), V::from_halves(block));
            minimum[0] = V::mul(V::from_bytes(least), V::from_halves(block + 32));
        } else if constexpr (format == Format::q6k) {
            const uint8_t* bytes = block + 32 + 2 * TILE_ROWS * (group % 8);
            const Floats d = V::from_halves(block);
            scale[0] = V::mul(V::from_signed_bytes(bytes_at(bytes)), d);
            scale[1] = V::mul(V::from_signed_bytes(bytes_at(bytes + TILE_ROWS)), d);
        } else if constexpr (format == Format::q3k) {
            Bytes16 first, second;
            six_bits(block + 32, group % 8, first, second);
            const Floats d = V::from_halves(block), middle = V::set(32);
            scale[0] = V::mul(V::sub(V::from_bytes(first), middle), d);
            scale[1] = V::mul(V::sub(V::from_bytes(second), middle), d);
        } else if constexpr (format == Format::q2k) {
            const Floats d = V::from_halves(block), dmin = V::from_halves(block + 32);
            for (int half = 0; half < 2; half++) {
                const Bytes16 both = bytes_at(block + 64 + TILE_ROWS * (2 * (group % 8) + half));
                scale[half] = V::mul(V::from_bytes(both & 15), d);
                minimum[half] = V::mul(V::from_bytes(both >> 4), dmin);
            }
        } else if constexpr (format == Format::iq4_xs) {
            const Bytes16 high = bytes_at(block + 32 + TILE_ROWS * (group % 8 / 4)) >> (2 * (group % 4));
            const Bytes16 low = bytes_at(block + 64 + TILE_ROWS * (group % 8 / 2)) >> (4 * (group % 2));
            scale[0] = V::mul(V::sub(V::from_bytes((low & 15) | (high & 3) << 4), V::set(32)), V::from_halves(block));
        } else if constexpr (format == Format::nvfp4) {
            const uint8_t* bytes = block + 2 * TILE_ROWS * (group % 2);
            scale[0] = V::from_e4m3(bytes_at(bytes));
            scale[1] = V::from_e4m3(bytes_at(bytes + TILE_ROWS));
        } else if constexpr (format == Format::q4_1 || format == Format::q5_1) {
            scale[0] = V::from_halves(block);
            minimum[0] = V::sub(V::set(-0.0f), V::from_halves(block + 32));  // theirs are added, -0 for 0 too
        } else {
            scale[0] = V::from_halves(block);
        }
    }
};

}  // namespace dali
