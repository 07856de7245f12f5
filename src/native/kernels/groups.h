// What a group of 32 columns of a tile's 16 rows holds, format by format: eight lines of unsigned quants, of which line i has columns
// 4 i to 4 i + 3, and the scales and minimums that belong to them (src/dali/kernels/formats.py has the layout).
#pragma once

#include <cstdint>

#include "kernels/coded.h"
#include "lanes/bytes.h"
#include "layout/format.h"

namespace dali {

template <class V>
struct Groups {
    using Floats = typename V::Floats;
    using Line = typename V::Line;

    // Lines of 8, 4, 2 and 1 bits, in place of `to` or beneath it: `at` is where in a byte they go.
    static void read_nibbles(const uint8_t* from, Line* to) {
        for (int i = 0; i < 4; i++) {
            const Line packed = V::load_line(from + LINE * i);
            to[i] = V::template bits<0, 0, 4>(packed);
            to[i + 4] = V::template bits<4, 0, 4>(packed);
        }
    }
    template <int at>
    static void add_pairs(const uint8_t* from, Line* to) {
        for (int i = 0; i < 2; i++) {
            const Line packed = V::load_line(from + LINE * i);
            to[i] = V::template add_bits<0, at, 2>(to[i], packed);
            to[i + 2] = V::template add_bits<2, at, 2>(to[i + 2], packed);
            to[i + 4] = V::template add_bits<4, at, 2>(to[i + 4], packed);
            to[i + 6] = V::template add_bits<6, at, 2>(to[i + 6], packed);
        }
    }
    static void read_pairs(const uint8_t* from, Line* to) {
        for (int i = 0; i < 2; i++) {
            const Line packed = V::load_line(from + LINE * i);
            to[i] = V::template bits<0, 0, 2>(packed);
            to[i + 2] = V::template bits<2, 0, 2>(packed);
            to[i + 4] = V::template bits<4, 0, 2>(packed);
            to[i + 6] = V::template bits<6, 0, 2>(packed);
        }
    }
    template <int at>
    static void add_single_bits(const uint8_t* from, Line* to) {
        const Line packed = V::load_line(from);
        to[0] = V::template add_bits<0, at, 1>(to[0], packed);
        to[1] = V::template add_bits<1, at, 1>(to[1], packed);
        to[2] = V::template add_bits<2, at, 1>(to[2], packed);
        to[3] = V::template add_bits<3, at, 1>(to[3], packed);
        to[4] = V::template add_bits<4, at, 1>(to[4], packed);
        to[5] = V::template add_bits<5, at, 1>(to[5], packed);
        to[6] = V::template add_bits<6, at, 1>(to[6], packed);
        to[7] = V::template add_bits<7, at, 1>(to[7], packed);
    }

    // quants: the group's lines; plane: the tile's scales.
    template <Format format>
    static DALI_INLINE void read(const uint8_t* quants, const uint8_t* plane, int group, Line* lines) {
        constexpr int bits = dali::bits(format);
        if constexpr (is_grid(format)) {
            Coded<V, format>::read(quants, plane + block_scale_bytes(format) * (group / 8), group % 8, lines);
        } else if constexpr (bits == 8) {
            for (int i = 0; i < 8; i++) lines[i] = V::load_line(quants + LINE * i);
        } else if constexpr (bits >= 4) {
            read_nibbles(quants, lines);
            if constexpr (bits == 5) add_single_bits<4>(quants + 4 * LINE, lines);
            if constexpr (bits == 6) add_pairs<4>(quants + 4 * LINE, lines);
        } else {
            read_pairs(quants, lines);
            if constexpr (bits == 3) add_single_bits<2>(quants + 2 * LINE, lines);
        }
        if constexpr (format == Format::mxfp4 || format == Format::nvfp4) {  // codes stand for these values, doubled, plus 12
            alignas(16) static constexpr uint8_t table[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
            for (int i = 0; i < 8; i++) lines[i] = V::look_up(table, lines[i]);
        }
        if constexpr (format == Format::iq4_nl || format == Format::iq4_xs) {  // theirs, plus 128
            alignas(16) static constexpr uint8_t table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};
            for (int i = 0; i < 8; i++) lines[i] = V::look_up(table, lines[i]);
        }
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
