// What a lane takes of a group of 32 columns of a tile (src/dali/kernels/formats.py has the layout), and the scales: of formats whose quants
// lie in planes.
#pragma once

#include "arithmetic.cuh"
#include "formats.cuh"

namespace dali::gpu {

// Four rows' unsigned bytes, a word a row: columns 4 t to 4 t + 3 of lane t of a quad, and those 16 further on. Of coded formats also the
// group's last word.
struct Quants {
    uint4 low, high, word;
};

template <class Of>
DALI_DEVICE uint4 of_each(const uint4& words, Of of) {
    return {of(words.x), of(words.y), of(words.z), of(words.w)};
}
DALI_DEVICE uint4 both(const uint4& a, const uint4& b) { return {a.x | b.x, a.y | b.y, a.z | b.z, a.w | b.w}; }

// Of each byte, the bits from `at` on that `mask` keeps.
DALI_DEVICE uint4 fields(const uint4& words, int at, uint32_t mask) {
    return of_each(words, [=](uint32_t word) { return word >> at & mask; });
}
DALI_DEVICE uint4 raised(const uint4& words, int by) {
    return of_each(words, [=](uint32_t word) { return word << by; });
}

// Values by four-bit code, as bytes: `first` eight of them and the `last`.
DALI_DEVICE uint4 look_up(const uint4& codes, uint2 first, uint2 last) {
    return of_each(codes, [=](uint32_t four) {
        const uint32_t which = (four & 0x7) | (four >> 4 & 0x70) | (four >> 8 & 0x700) | (four >> 12 & 0x7000);
        const uint32_t lower = select_bytes(first.x, first.y, which), upper = select_bytes(last.x, last.y, which);
        const uint32_t above = (four >> 3 & 0x01010101u) * 0xFFu;  // all bits of the bytes whose code is 8 or more
        return (lower & ~above) | (upper & above);
    });
}

// The plane of 2 bits: vector 2 f + l in bits 2 f and 2 f + 1 of line l.
DALI_DEVICE Quants unpack_pairs(const uint8_t* own, int t) {
    const uint4 line = load_once(own + t % 2 * LINE);
    return {fields(line, t / 2 * 2, 0x03030303u), fields(line, t / 2 * 2 + 4, 0x03030303u), {}};
}

// Of rows from `row` on.
template <int format>
DALI_DEVICE Quants unpack(const uint8_t* quants, int row, int t) {
    constexpr int bits = TRAITS[format].bits;
    const uint8_t* own = quants + row * 4;
    if (bits == 8) return {load_once(own + t * LINE), load_once(own + (t + 4) * LINE), {}};
    Quants to;
    if (bits >= 4) {
        const uint4 nibbles = load_once(own + t * LINE);
        to.low = fields(nibbles, 0, 0x0F0F0F0Fu);
        to.high = fields(nibbles, 4, 0x0F0F0F0Fu);
    } else {
        to = unpack_pairs(own, t);
    }
    if (bits == 6) {
        const Quants pairs = unpack_pairs(own + 4 * LINE, t);
        to.low = both(to.low, raised(pairs.low, 4));
        to.high = both(to.high, raised(pairs.high, 4));
    }
    if (bits == 5 || bits == 3) {  // the plane of 1 bit: vector i in bit i
        const uint4 line = load_once(own + (bits - 1) * LINE);
        to.low = both(to.low, raised(fields(line, t, 0x01010101u), bits - 1));
        to.high = both(to.high, raised(fields(line, t + 4, 0x01010101u), bits - 1));
    }
    constexpr bool doubled = format == MXFP4 || format == NVFP4;  // values, doubled, plus 12; IQ4's, plus 128
    if (doubled || format == IQ4_NL || format == IQ4_XS) {
        const uint2 first = doubled ? uint2{0x0F0E0D0Cu, 0x18141210u} : uint2{0x3F2D1801u, 0x766A5D4Fu};
        const uint2 last = doubled ? uint2{0x090A0B0Cu, 0x00040608u} : uint2{0xA6998D81u, 0xF1D9C5B5u};
        to.low = look_up(to.low, first, last);
        to.high = look_up(to.high, first, last);
    }
    return to;
}

DALI_DEVICE void four_halves(const uint8_t* from, float (&to)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = from_half(uint16_t(words.x));
    to[1] = from_half(uint16_t(words.x >> 16));
    to[2] = from_half(uint16_t(words.y));
    to[3] = from_half(uint16_t(words.y >> 16));
}

// to = (bytes - middle) * by, row by row.
DALI_DEVICE void scale_bytes(uint32_t bytes, int middle, const float (&by)[4], float (&to)[4]) {
    for (int r = 0; r < 4; r++) to[r] = mul(__int2float_rn(int(bytes >> (8 * r) & 255) - middle), by[r]);
}

// Two numbers of six bits a group: eight bytes with both low nibbles, four with two groups' higher bits.
DALI_DEVICE uint2 six_bits(const uint8_t* from, int group) {
    const uint32_t low = *reinterpret_cast<const uint32_t*>(from + TILE_ROWS * group);
    const uint32_t high = *reinterpret_cast<const uint32_t*>(from + TILE_ROWS * (8 + group / 2)) >> (4 * (group % 2));
    return {(low & 0x0F0F0F0Fu) | (high & 0x03030303u) << 4, (low >> 4 & 0x0F0F0F0Fu) | (high & 0x0C0C0C0Cu) << 2};
}

// Of four rows; minimums of formats that have them.
struct Scales {
    float scale[4], minimum[4];
};

// The scales of the rows from `row` on, for part `part` of group `group` of a block of the scale plane: where halves have scales of their
// own, the second half is part 1.
template <int format>
DALI_DEVICE Scales read_scales(const uint8_t* block, int group, int part, int row) {
    constexpr FormatTraits of = TRAITS[format];
    const auto bytes = [=](int at) { return *reinterpret_cast<const uint32_t*>(block + at + row); };
    Scales to;
    if (format == MXFP4) {
        const uint32_t exponents = bytes(0);
        for (int r = 0; r < 4; r++) {
            const uint32_t e = exponents >> (8 * r) & 255;
            to.scale[r] = from_bits(e < 2 ? 0x00200000u << e : (e - 1) << 23);
        }
        return to;
    }
    if (format == NVFP4) {  // unsigned floats of four bits of exponent and three of mantissa
        const uint32_t four = bytes(TILE_ROWS * (2 * group + part));
        for (int r = 0; r < 4; r++) to.scale[r] = mul(from_bits((four >> (8 * r) & 127) << 20), 0x1p119f);
        return to;
    }
    float d[4], least[4] = {};
    four_halves(block + 2 * row, d);
    if (of.minimum) four_halves(block + 2 * TILE_ROWS + 2 * row, least);
    if (format == Q4K || format == Q5K) {
        const uint2 both = six_bits(block + 64 + row, group);
        scale_bytes(both.x, 0, d, to.scale);
        scale_bytes(both.y, 0, least, to.minimum);
    } else if (format == Q6K) {  // signed: 128 more, less 128
        scale_bytes(bytes(32 + TILE_ROWS * (2 * group + part)) ^ 0x80808080u, 128, d, to.scale);
    } else if (format == Q3K) {
        const uint2 both = six_bits(block + 32 + row, group);
        scale_bytes(part ? both.y : both.x, 32, d, to.scale);
    } else if (format == Q2K) {
        const uint32_t both = bytes(64 + TILE_ROWS * (2 * group + part));
        scale_bytes(both & 0x0F0F0F0Fu, 0, d, to.scale);
        scale_bytes(both >> 4 & 0x0F0F0F0Fu, 0, least, to.minimum);
    } else if (format == IQ4_XS) {
        const uint32_t high = bytes(32 + TILE_ROWS * (group / 4)) >> (2 * (group % 4)) & 0x03030303u;
        const uint32_t low = bytes(64 + TILE_ROWS * (group / 2)) >> (4 * (group % 2)) & 0x0F0F0F0Fu;
        scale_bytes(low | high << 4, 32, d, to.scale);
    } else {
        for (int r = 0; r < 4; r++) {
            to.scale[r] = d[r];
            to.minimum[r] = sub(-0.0f, least[r]);  // theirs are added, -0 for 0 too
        }
    }
    return to;
}

}  // namespace dali::gpu
