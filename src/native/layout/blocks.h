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
    // 32 quants of `bits`, columns 0 to 15 and 16 to 31: their planes of 4, 2 and 1 bits.
    template <int bits>
    void group(int group, Bytes16 first, Bytes16 second) const {
        int line = group * bits;
        constexpr int above = bits >= 4 ? 4 : 0;  // bits that lie beneath
        if constexpr (bits >= 4) {
            const Bytes16 nibbles = (first & 15) | second << 4;
            words(line, reinterpret_cast<const uint8_t*>(&nibbles), 4);
            line += 4;
        }
        uint8_t quants[GROUP];
        std::memcpy(quants, &first, 16);
        std::memcpy(quants + 16, &second, 16);
        if constexpr (bits - above >= 2) {
            uint64_t pairs = 0;
            for (int field = 0; field < 4; field++) {
                uint64_t eight;
                std::memcpy(&eight, quants + 8 * field, 8);
                pairs |= (eight >> above & 0x0303030303030303u) << (2 * field);
            }
            words(line, reinterpret_cast<const uint8_t*>(&pairs), 2);
            line += 2;
        }
        if constexpr (bits % 2 == 1) {
            uint32_t single = 0;
            for (int i = 0; i < 8; i++) {
                uint32_t four;
                std::memcpy(&four, quants + 4 * i, 4);
                single |= (four >> (bits - 1) & 0x01010101u) << i;
            }
            word(line, single);
        }
    }
    // Two numbers of six bits for each of eight groups: see Groups::six_bits.
    void six_bits(int offset, const uint8_t (&first)[8], const uint8_t (&second)[8]) const {
        for (int i = 0; i < 8; i++) byte(offset + i, (first[i] & 15) | second[i] << 4);
        for (int i = 0; i < 8; i += 2)
            byte(offset + 8 + i / 2, first[i] >> 4 | (second[i] >> 4) << 2 | (first[i + 1] >> 4) << 4 | (second[i + 1] >> 4) << 6);
    }
};

// Scales and minimums in the 12 bytes of Q4_K and Q5_K.
inline void scales_and_minimums(const uint8_t* packed, uint8_t (&scales)[8], uint8_t (&minimums)[8]) {
    for (int i = 0; i < 4; i++) {
        scales[i] = packed[i] & 63;
        minimums[i] = packed[i + 4] & 63;
        scales[i + 4] = uint8_t((packed[i + 8] & 15) | (packed[i] >> 6) << 4);
        minimums[i + 4] = uint8_t((packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4);
    }
}

inline uint64_t bit_of_each(uint8_t bits) {  // each in a byte of its own
    const uint64_t apart = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (apart + 0x7F7F7F7F7F7F7F7Fu) >> 7 & 0x0101010101010101u;
}

inline Bytes16 join(uint64_t low, uint64_t high) {
    Bytes16 out;
    std::memcpy(&out, &low, 8);
    std::memcpy(reinterpret_cast<uint8_t*>(&out) + 8, &high, 8);
    return out;
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
    const Bytes16 nibbles = bytes_at(low);
    to.group<5>(0, (nibbles & 15) | join(bit_of_each(high[0]), bit_of_each(high[1])) << 4,
                nibbles >> 4 | join(bit_of_each(high[2]), bit_of_each(high[3])) << 4);
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

inline bool move_super_scales(const uint8_t* block, const Place& to) {
    to.half(0, block);
    to.half(2, block + 2);
    uint8_t scales[8], minimums[8];
    scales_and_minimums(block + 4, scales, minimums);
    to.six_bits(4, scales, minimums);
    return is_finite_half(block) && is_finite_half(block + 2);
}

struct Q4_K {  // 32 bytes hold two groups, the first in low nibbles
    static constexpr Format format = Format::q4k;
    static constexpr int bytes = 144;
    static bool move(const uint8_t* block, const Place& to) {
        for (int pair = 0; pair < 4; pair++) {
            const Bytes16 first = bytes_at(block + 16 + 32 * pair), second = bytes_at(block + 32 + 32 * pair);
            to.group<4>(2 * pair, first, second);
            to.group<4>(2 * pair + 1, first >> 4, second >> 4);
        }
        return move_super_scales(block, to);
    }
};

struct Q5_K {
    static constexpr Format format = Format::q5k;
    static constexpr int bytes = 176;
    static bool move(const uint8_t* block, const Place& to) {
        const Bytes16 high = bytes_at(block + 16), other_high = bytes_at(block + 32);
        for (int group = 0; group < 8; group++) {
            const uint8_t* low = block + 48 + 32 * (group / 2);
            const int shift = 4 * (group % 2);
            to.group<5>(group, (bytes_at(low) >> shift & 15) | (high >> group & 1) << 4,
                        (bytes_at(low + 16) >> shift & 15) | (other_high >> group & 1) << 4);
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
        for (int group = 0; group < 8; group++) {
            const int half = group / 4, quarter = group % 4;
            const uint8_t *low = block + 64 * half + 32 * (quarter % 2), *high = block + 128 + 32 * half;
            const int shift = 4 * (quarter / 2);
            to.group<6>(group, (bytes_at(low) >> shift & 15) | (bytes_at(high) >> (2 * quarter) & 3) << 4,
                        (bytes_at(low + 16) >> shift & 15) | (bytes_at(high + 16) >> (2 * quarter) & 3) << 4);
        }
        return is_finite_half(block + 208);
    }
};

// Two bits a quant, of which 32 bytes hold four groups: those of group `group` in `quants` [64], both halves.
inline void two_bits(const uint8_t* quants, int group, Bytes16& first, Bytes16& second) {
    const uint8_t* from = quants + 32 * (group / 4);
    const int shift = 2 * (group % 4);
    first = bytes_at(from) >> shift & 3;
    second = bytes_at(from + 16) >> shift & 3;
}

struct Q3_K {  // hmask [32], qs [64], scales [12], d
    static constexpr Format format = Format::q3k;
    static constexpr int bytes = 110;
    static bool move(const uint8_t* block, const Place& to) {
        const Bytes16 high = bytes_at(block), other_high = bytes_at(block + 16);
        for (int group = 0; group < 8; group++) {
            Bytes16 first, second;
            two_bits(block + 32, group, first, second);
            to.group<3>(group, first | (high >> group & 1) << 2, second | (other_high >> group & 1) << 2);
        }
        const uint8_t* packed = block + 96;  // sixteen scales: eight low nibbles, then eight high ones, and two bits of each
        uint8_t scales[2][8];
        for (int i = 0; i < 16; i++)
            scales[i % 2][i / 2] = uint8_t((packed[i % 8] >> (4 * (i / 8)) & 15) | (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4);
        to.half(0, block + 108);
        to.six_bits(2, scales[0], scales[1]);
        return is_finite_half(block + 108);
    }
};

struct Q2_K {  // scales [16], qs [64], d, dmin
    static constexpr Format format = Format::q2k;
    static constexpr int bytes = 84;
    static bool move(const uint8_t* block, const Place& to) {
        for (int group = 0; group < 8; group++) {
            Bytes16 first, second;
            two_bits(block + 16, group, first, second);
            to.group<2>(group, first, second);
        }
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
        for (int group = 0; group < 8; group++) {
            Bytes16 first, second;
            two_bits(block, group, first, second);
            to.group<2>(group, first, second);
        }
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
        for (int group = 0; group < 8; group++) to.group<2>(group, bytes_at(quants + 32 * group), bytes_at(quants + 32 * group + 16));
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
            uint64_t half[2];
            std::memcpy(half, block + 4 + 16 * group, 16);
            to.group<4>(group, join(half[0] & low, half[0] >> 4 & low), join(half[1] & low, half[1] >> 4 & low));
        }
        bool finite = true;
        for (int i = 0; i < 4; i++) finite &= (block[i] & 0x7F) != 0x7F;
        return finite;
    }
};

}  // namespace dali
