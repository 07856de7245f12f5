// GGUF's blocks, as their bytes move into tiles: the values stay (ggml-common.h names the fields; src/dali/kernels/formats.py has the
// tiles' layout).
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes/bytes.h"
#include "layout/format.h"

namespace dali {

inline bool is_finite_half(const uint8_t* half) { return (half[1] & 0x7C) != 0x7C; }  // the exponent is not all ones

// Where one row's block goes: its scales, which lie 16 rows side by side, and its words of quants.
struct Place {
    uint8_t *plane, *lines;
    int row;

    // At `offset` bytes a row from the block's scales on.
    void half(int offset, const uint8_t* from) const { std::memcpy(plane + TILE_ROWS * offset + 2 * row, from, 2); }
    void byte(int offset, unsigned value) const { plane[TILE_ROWS * offset + row] = uint8_t(value); }
    void bytes(int offset, const uint8_t* from, int count) const {
        for (int i = 0; i < count; i++) byte(offset + i, from[i]);
    }
    void word(int line, uint32_t word) const { std::memcpy(lines + LINE * line + 4 * row, &word, 4); }
    void words(int first, const uint8_t* from, int count, uint32_t flipped = 0) const {
        for (int i = 0; i < count; i++) {
            uint32_t one;
            std::memcpy(&one, from + 4 * i, 4);
            word(first + i, one ^ flipped);
        }
    }
    void words(int first, Bytes16 bytes) const { words(first, reinterpret_cast<const uint8_t*>(&bytes), 4); }
    void words(int first, uint64_t two) const { words(first, reinterpret_cast<const uint8_t*>(&two), 2); }
    // Two numbers of six bits for each of eight groups: see Groups::six_bits. low: bytes of both low nibbles; high: of what is above them.
    void six_bits(int offset, uint64_t low, uint32_t high) const {
        for (int i = 0; i < 8; i++) byte(offset + i, unsigned(low >> (8 * i) & 255));
        for (int i = 0; i < 4; i++) byte(offset + 8 + i, high >> (8 * i) & 255);
    }
};

inline uint32_t word_at(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
}
inline uint64_t two_words_at(const uint8_t* from) {
    uint64_t words;
    std::memcpy(&words, from, 8);
    return words;
}

// Bytes 0, 2, 4 and 6.
inline uint32_t every_other_byte(uint64_t bytes) {
    bytes &= 0x00FF00FF00FF00FFu;
    bytes = (bytes | bytes >> 8) & 0x0000FFFF0000FFFFu;
    return uint32_t(bytes | bytes >> 16);
}

// Bits of `a` that are `by` above those of `mask` change places with those of `b` in it.
inline void exchange(uint64_t& a, uint64_t& b, int by, uint64_t mask) {
    const uint64_t differ = (a >> by ^ b) & mask;
    a ^= differ << by;
    b ^= differ;
}

// Of 32 bytes, a column each, which hold two bits of each of four groups: each group's two words of a plane of 2 bits.
inline void planes_of_two_bits(const uint8_t* from, uint64_t (&groups)[4]) {
    for (int i = 0; i < 4; i++) groups[i] = two_words_at(from + 8 * i);
    for (int i = 0; i < 2; i++) exchange(groups[i], groups[i + 2], 4, 0x0F0F0F0F0F0F0F0Fu);
    for (int i = 0; i < 4; i += 2) exchange(groups[i], groups[i + 1], 2, 0x3333333333333333u);
}

// Of 32 bytes, a column each, which hold a bit of each of eight groups: each group's word of a plane of 1 bit.
inline void planes_of_one_bit(const uint8_t* from, uint32_t (&groups)[8]) {
    uint64_t pairs[4];
    for (int i = 0; i < 4; i++) pairs[i] = two_words_at(from + 8 * i);
    for (int i = 0; i < 2; i++) exchange(pairs[i], pairs[i + 2], 4, 0x0F0F0F0F0F0F0F0Fu);
    for (int i = 0; i < 4; i += 2) exchange(pairs[i], pairs[i + 1], 2, 0x3333333333333333u);
    for (int i = 0; i < 4; i++) {
        const uint64_t differ = (pairs[i] >> 1 ^ pairs[i] >> 32) & 0x55555555u;
        pairs[i] ^= differ << 32 ^ differ << 1;
        groups[2 * i] = uint32_t(pairs[i]);
        groups[2 * i + 1] = uint32_t(pairs[i] >> 32);
    }
}

// Bits of 32 columns in their order, as a word of a plane of 1 bit: bit 4 i + b becomes bit i of byte b.
inline uint32_t plane_of_one_bit(uint32_t columns) {
    uint32_t word = 0;
    for (int half = 0; half < 2; half++) {
        uint64_t two = (columns | uint64_t(columns >> 1) << 32) >> (2 * half) & 0x1111111111111111u;  // bytes 0 and 1, then 2 and 3
        two = (two | two >> 3) & 0x0303030303030303u;
        two = (two | two >> 6) & 0x000F000F000F000Fu;
        two = (two | two >> 12) & 0x000000FF000000FFu;
        word |= uint32_t(two | two >> 24) << (16 * half);
    }
    return word;
}

// Of 32 bytes, which hold a group's columns in low nibbles and another's in high ones: both groups' planes of 4 bits.
inline void planes_of_nibbles(const uint8_t* from, Bytes16& low, Bytes16& high) {
    const Bytes16 first = bytes_at(from), second = bytes_at(from + 16);
    low = (first & 15) | second << 4;
    high = first >> 4 | (second & 0xF0);
}

// --- A struct a type: its packed format, bytes of a block, and how one moves. False for scales that are NaN or infinite.

struct Q8_0 {
    static constexpr Format format = Format::w8;
    static constexpr int bytes = 34;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.words(0, block + 2, 8, 0x80808080);  // zero point 128
        return is_finite_half(block);
    }
};

struct Q4_0 {
    static constexpr Format format = Format::w4;
    static constexpr int bytes = 18;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.words(0, block + 2, 4);
        return is_finite_half(block);
    }
};

struct Mxfp4 {
    static constexpr Format format = Format::mxfp4;
    static constexpr int bytes = 17;
    static bool move(const uint8_t* block, const Place& to) {
        to.byte(0, block[0]);
        to.words(0, block + 1, 4);
        return block[0] != 0xFF;
    }
};

struct Q4_1 {
    static constexpr Format format = Format::q4_1;
    static constexpr int bytes = 20;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.half(2, block + 2);
        to.words(0, block + 4, 4);
        return is_finite_half(block) && is_finite_half(block + 2);
    }
};

inline void move_five_bits(const uint8_t* high, const uint8_t* low, const Place& to) {
    to.words(0, low, 4);
    to.word(4, plane_of_one_bit(word_at(high)));
}

struct Q5_0 {
    static constexpr Format format = Format::q5_0;
    static constexpr int bytes = 22;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        move_five_bits(block + 2, block + 6, to);
        return is_finite_half(block);
    }
};

struct Q5_1 {
    static constexpr Format format = Format::q5_1;
    static constexpr int bytes = 24;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.half(2, block + 2);
        move_five_bits(block + 4, block + 8, to);
        return is_finite_half(block) && is_finite_half(block + 2);
    }
};

// Of the 12 bytes of Q4_K and Q5_K, the first four hold six bits of groups 0 to 3's scales and two bits of groups 4 to 7's, the next four the
// same of minimums, the last four the other bits of groups 4 to 7.
inline bool move_super_scales(const uint8_t* block, const Place& to) {
    to.half(0, block);
    to.half(2, block + 2);
    const uint32_t scales = word_at(block + 4), minimums = word_at(block + 8), last = word_at(block + 12);
    const uint32_t first = (scales & 0x0F0F0F0Fu) | (minimums & 0x0F0F0F0Fu) << 4;
    const uint64_t above = (scales >> 4 & 0x03030303u) | (minimums >> 2 & 0x0C0C0C0Cu) |
                           uint64_t((scales >> 6 & 0x03030303u) | (minimums >> 4 & 0x0C0C0C0Cu)) << 32;  // a group's in a byte
    to.six_bits(4, first | uint64_t(last) << 32, every_other_byte(above | above >> 4));
    return is_finite_half(block) && is_finite_half(block + 2);
}

struct Q4_K {  // 32 bytes hold two groups, the first in low nibbles
    static constexpr Format format = Format::q4k;
    static constexpr int bytes = 144;
    static bool move(const uint8_t* block, const Place& to) {
        for (int pair = 0; pair < 4; pair++) {
            Bytes16 low, high;
            planes_of_nibbles(block + 16 + 32 * pair, low, high);
            to.words(8 * pair, low);
            to.words(8 * pair + 4, high);
        }
        return move_super_scales(block, to);
    }
};

struct Q5_K {  // as Q4_K, with 32 bytes between of a bit of each group
    static constexpr Format format = Format::q5k;
    static constexpr int bytes = 176;
    static bool move(const uint8_t* block, const Place& to) {
        uint32_t fifth[8];
        planes_of_one_bit(block + 16, fifth);
        for (int pair = 0; pair < 4; pair++) {
            Bytes16 low, high;
            planes_of_nibbles(block + 48 + 32 * pair, low, high);
            to.words(10 * pair, low);
            to.word(10 * pair + 4, fifth[2 * pair]);
            to.words(10 * pair + 5, high);
            to.word(10 * pair + 9, fifth[2 * pair + 1]);
        }
        return move_super_scales(block, to);
    }
};

struct Q6_K {  // a half block has four groups, two of them in low nibbles
    static constexpr Format format = Format::q6k;
    static constexpr int bytes = 210;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block + 208);
        to.bytes(2, block + 192, 16);
        for (int half = 0; half < 2; half++) {
            Bytes16 low[4];
            uint64_t high[4];
            for (int i = 0; i < 2; i++) planes_of_nibbles(block + 64 * half + 32 * i, low[i], low[i + 2]);
            planes_of_two_bits(block + 128 + 32 * half, high);
            for (int i = 0; i < 4; i++) {
                to.words(24 * half + 6 * i, low[i]);
                to.words(24 * half + 6 * i + 4, high[i]);
            }
        }
        return is_finite_half(block + 208);
    }
};

// Two bits a quant, of which 32 bytes hold four groups: 64 bytes. lines: from one group's to the next one's.
inline void move_two_bits(const uint8_t* quants, int lines, const Place& to) {
    for (int half = 0; half < 2; half++) {
        uint64_t groups[4];
        planes_of_two_bits(quants + 32 * half, groups);
        for (int i = 0; i < 4; i++) to.words(lines * (4 * half + i), groups[i]);
    }
}

struct Q3_K {  // hmask [32], qs [64], scales [12], d
    static constexpr Format format = Format::q3k;
    static constexpr int bytes = 110;
    static bool move(const uint8_t* block, const Place& to) {
        uint32_t third[8];
        planes_of_one_bit(block, third);
        for (int group = 0; group < 8; group++) to.word(3 * group + 2, third[group]);
        move_two_bits(block + 32, 3, to);
        // Sixteen scales, two a group: eight low nibbles, then eight high ones; four bytes of two bits of each, scale i's in byte i % 4.
        const uint64_t packed = two_words_at(block + 96), low = packed & 0x0F0F0F0F0F0F0F0Fu, high = packed >> 4 & 0x0F0F0F0F0F0F0F0Fu;
        uint32_t above = word_at(block + 104), differ = (above ^ above >> 12) & 0x0000F0F0u;
        above ^= differ ^ differ << 12;
        differ = (above ^ above >> 6) & 0x00CC00CCu;
        above ^= differ ^ differ << 6;
        to.half(0, block + 108);
        to.six_bits(2, every_other_byte(low | low >> 4) | uint64_t(every_other_byte(high | high >> 4)) << 32, above);
        return is_finite_half(block + 108);
    }
};

struct Q2_K {  // scales [16], qs [64], d, dmin
    static constexpr Format format = Format::q2k;
    static constexpr int bytes = 84;
    static bool move(const uint8_t* block, const Place& to) {
        move_two_bits(block + 16, 2, to);
        to.half(0, block + 80);
        to.half(2, block + 82);
        to.bytes(4, block, 16);
        return is_finite_half(block + 80) && is_finite_half(block + 82);
    }
};

struct Tq2_0 {  // qs [64], d
    static constexpr Format format = Format::tq2_0;
    static constexpr int bytes = 66;
    static bool move(const uint8_t* block, const Place& to) {
        move_two_bits(block, 2, to);
        to.half(0, block + 64);
        return is_finite_half(block + 64);
    }
};

struct Tq1_0 {  // qs [48], qh [4], d: digits to the base of three, as the high digits of a byte's fraction of 256
    static constexpr Format format = Format::tq2_0;
    static constexpr int bytes = 54;
    static bool move(const uint8_t* block, const Place& to) {
        constexpr uint8_t powers[5] = {1, 3, 9, 27, 81};
        uint8_t quants[256], *next = quants;
        const auto digits = [&](const uint8_t* from, int count, int of_each) {
            for (int digit = 0; digit < of_each; digit++)
                for (int i = 0; i < count; i++) *next++ = uint8_t(uint8_t(from[i] * powers[digit]) * 3 >> 8);
        };
        digits(block, 32, 5);
        digits(block + 32, 16, 5);
        digits(block + 48, 4, 4);
        for (int group = 0; group < 8; group++) {
            uint64_t pairs = 0;
            for (int field = 0; field < 4; field++) pairs |= two_words_at(quants + 32 * group + 8 * field) << (2 * field);
            to.words(2 * group, pairs);
        }
        to.half(0, block + 52);
        return is_finite_half(block + 52);
    }
};

struct Iq4_Nl {
    static constexpr Format format = Format::iq4_nl;
    static constexpr int bytes = 18;
    static bool move(const uint8_t* block, const Place& to) { return Q4_0::move(block, to); }
};

struct Iq4_Xs {  // d, scales_h [2], scales_l [4], qs [128]
    static constexpr Format format = Format::iq4_xs;
    static constexpr int bytes = 136;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.bytes(2, block + 2, 6);
        to.words(0, block + 8, 32);
        return is_finite_half(block);
    }
};

struct Nvfp4 {  // d [4], qs [32]: eight bytes hold sixteen columns, the first eight in low nibbles
    static constexpr Format format = Format::nvfp4;
    static constexpr int bytes = 36;
    static bool move(const uint8_t* block, const Place& to) {
        to.bytes(0, block, 4);
        for (int group = 0; group < 2; group++) {
            constexpr uint64_t low = 0x0F0F0F0F0F0F0F0Fu;
            const uint64_t first = two_words_at(block + 4 + 16 * group), second = two_words_at(block + 12 + 16 * group);
            to.words(4 * group, (first & low) | (second & low) << 4);
            to.words(4 * group + 2, (first >> 4 & low) | (second & ~low));
        }
        bool finite = true;
        for (int i = 0; i < 4; i++) finite &= (block[i] & 0x7F) != 0x7F;
        return finite;
    }
};

}  // namespace dali
