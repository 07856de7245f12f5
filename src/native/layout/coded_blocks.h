// GGUF's blocks of codes, as their bytes move into tiles: see layout/blocks.h. kernels/coded.h has what a group's words hold.
#pragma once

#include "layout/blocks.h"

namespace dali {

inline uint32_t word_at(const uint8_t* from) {
    uint32_t word;
    std::memcpy(&word, from, 4);
    return word;
}

// The nibbles of 16 bits, each in the low half of a byte.
inline uint32_t nibbles_apart(uint32_t half) {
    const uint32_t bytes = (half | half << 8) & 0x00FF00FFu;
    return (bytes | bytes << 4) & 0x0F0F0F0Fu;
}

// Signs in the order of columns, into that of a tile's.
inline uint32_t signs_by_half(uint32_t signs) { return nibbles_apart(signs & 0xFFFF) | nibbles_apart(signs >> 16) << 4; }

// Four bytes, of which the two in the middle change places: codes of 8 columns.
inline uint32_t codes_by_half(uint32_t codes) { return (codes & 0xFF0000FFu) | (codes & 0xFF00) << 8 | (codes >> 8 & 0xFF00); }

// Four times 7 signs; bits 0 to 3 of `above` lie where the signs of columns 7, 15, 23 and 31 would.
inline uint32_t seven_signs(uint32_t sevens, uint32_t above) {
    uint32_t signs = 0;
    for (int i = 0; i < 4; i++) signs |= (sevens >> (7 * i) & 127) << (8 * i) | (above >> i & 1) << (8 * i + 7);
    return signs_by_half(signs);
}

// A word of 28 signs and a scale of 4 bits, whose inner bits change places: bits 0 and 1 lie in a byte of a tile.
inline uint32_t signs_and_scale(uint32_t word) {
    const uint32_t scale = word >> 28;
    return seven_signs(word, (scale & 9) | (scale & 2) << 1 | (scale >> 1 & 2));
}

struct Iq3_Xxs {  // d, qs [64], four bytes a group of signs and a scale
    static constexpr Format format = Format::iq3_xxs;
    static constexpr int bytes = 98;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        for (int group = 0; group < 8; group++) {
            to.words(3 * group, block + 2 + 8 * group, 2);
            to.word(3 * group + 2, signs_and_scale(word_at(block + 66 + 4 * group)));
        }
        return is_finite_half(block);
    }
};

struct Iq3_S {  // d, qs [64], qh [8], signs [32], scales [4]
    static constexpr Format format = Format::iq3_s;
    static constexpr int bytes = 110;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.bytes(2, block + 66, 8);
        to.bytes(10, block + 106, 4);
        for (int group = 0; group < 8; group++) {
            to.words(3 * group, block + 2 + 8 * group, 2);
            to.word(3 * group + 2, signs_by_half(word_at(block + 74 + 4 * group)));
        }
        return is_finite_half(block);
    }
};

struct Iq2_Xxs {  // d, and eight bytes a group: codes, signs and a scale
    static constexpr Format format = Format::iq2_xxs;
    static constexpr int bytes = 66;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        for (int group = 0; group < 8; group++) {
            to.word(2 * group, codes_by_half(word_at(block + 2 + 8 * group)));
            to.word(2 * group + 1, signs_and_scale(word_at(block + 6 + 8 * group)));
        }
        return is_finite_half(block);
    }
};

struct Iq2_Xs {  // d, qs [32] words of 9 bits of a code and 7 signs, scales [8]
    static constexpr Format format = Format::iq2_xs;
    static constexpr int bytes = 74;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.bytes(2, block + 66, 8);
        for (int group = 0; group < 8; group++) {
            uint32_t codes = 0, sevens = 0, above = 0;
            for (int i = 0; i < 4; i++) {
                const uint8_t* word = block + 2 + 8 * group + 2 * i;
                codes |= uint32_t(word[0]) << (8 * i);
                sevens |= uint32_t(word[1] >> 1) << (7 * i);
                above |= uint32_t(word[1] & 1) << i;
            }
            to.word(2 * group, codes_by_half(codes));
            to.word(2 * group + 1, seven_signs(sevens, above));
        }
        return is_finite_half(block);
    }
};

struct Iq2_S {  // d, qs [32], signs [32], qh [8], scales [8]
    static constexpr Format format = Format::iq2_s;
    static constexpr int bytes = 82;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        to.bytes(2, block + 66, 16);
        for (int group = 0; group < 8; group++) {
            to.word(2 * group, codes_by_half(word_at(block + 2 + 4 * group)));
            to.word(2 * group + 1, signs_by_half(word_at(block + 34 + 4 * group)));
        }
        return is_finite_half(block);
    }
};

struct Iq1_S {  // d, qs [32], qh [8] words
    static constexpr Format format = Format::iq1_s;
    static constexpr int bytes = 50;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        for (int group = 0; group < 8; group++) {
            to.half(2 + 2 * group, block + 34 + 2 * group);
            to.word(group, codes_by_half(word_at(block + 2 + 4 * group)));
        }
        return is_finite_half(block);
    }
};

struct Iq1_M {  // qs [32], qh [16], four words of scales, each with four of 3 bits and a nibble of d
    static constexpr Format format = Format::iq1_m;
    static constexpr int bytes = 56;
    static bool move(const uint8_t* block, const Place& to) {
        uint8_t d[2] = {}, low[4] = {}, high[2] = {};
        for (int i = 0; i < 4; i++) {
            const unsigned scales = block[48 + 2 * i] | block[49 + 2 * i] << 8;
            d[i / 2] |= uint8_t(scales >> 12 << (4 * (i % 2)));
            for (int group = 2 * i; group < 2 * i + 2; group++) {
                const unsigned both = scales >> (6 * (group % 2)) & 63;
                low[group / 2] |= uint8_t((both & 15) << (4 * (group % 2)));
                high[group / 4] |= uint8_t((both >> 4) << (2 * (group % 4)));
            }
        }
        to.half(0, d);
        to.bytes(18, low, 4);
        to.bytes(22, high, 2);
        for (int group = 0; group < 8; group++) {
            to.half(2 + 2 * group, block + 32 + 2 * group);
            to.word(group, codes_by_half(word_at(block + 4 * group)));
        }
        return is_finite_half(d);
    }
};

}  // namespace dali
