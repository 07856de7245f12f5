// Keys and values in 8 bits, to and from floats (layout/kept_rows.h).
#pragma once

#include <cstring>

#include "kernels/quantize.h"
#include "lanes/floats.h"

namespace dali {

template <class V>
struct KeptRows {
    // A float that a half can hold, or one beyond: infinity.
    static uint16_t half_of(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (bits > 0x7F800000u) return 0x7E00;
        if (bits >= 0x47800000u) return 0x7C00;
        return bits < 0x38800000u ? uint16_t(value * 0x1p24f) : uint16_t((bits - 0x38000000u) >> 13);
    }

    static void write(const float* values, int width, uint8_t* row) {
        uint8_t* scales = row + width;
        for (int c = 0; c < width; c += GROUP) {
            int8_t quants[GROUP];
            float scale;
            Quantizer<V>::group(values + c, quants, scale);
            std::memcpy(row + c, quants, c + GROUP <= width ? GROUP : width - c);
            const uint16_t half = half_of(scale);
            std::memcpy(scales + c / GROUP * 2, &half, 2);
        }
    }

    static DALI_INLINE void read_group(const uint8_t* quants, const uint8_t* scale, float* to) {
        uint16_t half;
        std::memcpy(&half, scale, 2);
        const auto by = V::set(V::from_half(half));
        for (int i = 0; i < GROUP; i += LANES) V::store(to + i, V::mul(V::from_signed_bytes(bytes_at(quants + i)), by));
    }

    // The first `width` values of a row whose scales begin at `scales`: exactly what they stand for. Up to a group more is written.
    static DALI_INLINE void read(const uint8_t* row, int scales, int width, float* to) {
        int c = 0;
        for (; c + GROUP <= width; c += GROUP) read_group(row + c, row + scales + c / GROUP * 2, to + c);
        if (c == width) return;
        uint8_t quants[GROUP] = {};
        std::memcpy(quants, row + c, width - c);
        read_group(quants, row + scales + c / GROUP * 2, to + c);
    }
};

}  // namespace dali
