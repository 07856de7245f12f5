// GGUF's blocks of codes, as their bytes move into tiles: see layout/blocks.h. kernels/coded.h has what a group's words hold.
#pragma once

#include "layout/blocks.h"

namespace dali {

struct Iq3_Xxs {  // d, qs [64], four bytes a group of signs and a scale
    static constexpr Format format = Format::iq3_xxs;
    static constexpr int bytes = 98;
    static bool move(const uint8_t* block, const Place& to) {
        to.half(0, block);
        for (int group = 0; group < 8; group++) {
            to.words(3 * group, block + 2 + 8 * group, 2);
            to.words(3 * group + 2, block + 66 + 4 * group, 1);
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
            to.words(3 * group + 2, block + 74 + 4 * group, 1);
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
            to.words(2 * group, block + 2 + 8 * group, 2);
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
            const uint64_t words = two_words_at(block + 2 + 8 * group);  // bytes of codes and of signs in turn
            to.word(2 * group, every_other_byte(words));
            to.word(2 * group + 1, every_other_byte(words >> 8));
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
            to.words(2 * group, block + 2 + 4 * group, 1);
            to.words(2 * group + 1, block + 34 + 4 * group, 1);
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
            to.words(group, block + 2 + 4 * group, 1);
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
            to.words(group, block + 4 * group, 1);
        }
        return is_finite_half(d);
    }
};

}  // namespace dali
