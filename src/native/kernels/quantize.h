// Groups of 32 floats to integers of 8 bits, as GGML quantizes activations and what it keeps of tokens: the largest magnitude becomes 127.
#pragma once

#include <cstring>

#include "kernels/variant.h"
#include "lanes/bytes.h"

namespace dali {

template <class V>
struct Quantizer {
    // The nearest value a 16-bit float can hold, were its exponent not bounded above.
    static float to_half_precision(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (bits < 0x38800000u) return (value + 0.5f) - 0.5f;  // denormal as a half: multiples of 2^-24
        bits = (bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFFu;
        std::memcpy(&value, &bits, 4);
        return value;
    }

    // Returns the sum of the quants.
    static DALI_INLINE int32_t group(const float* values, int8_t* quants, float& scale) {
        const uint32_t bits = V::largest_magnitude(values);
        float largest;
        std::memcpy(&largest, &bits, 4);
        if (bits >= 0x7F800000u) {  // infinity or NaN: no integers stand for it; 0 * NaN carries it on
            std::memset(quants, 0, GROUP);
            scale = __builtin_nanf("");
            return 0;
        }
        const float factor = 127.0f / largest;
        scale = to_half_precision(largest / 127.0f);  // as GGML stores it: the same file gives the same numbers
        return V::round_group(values, __builtin_isinf(factor) ? 0.0f : factor, quants);  // zeros, or denormals
    }
};

}  // namespace dali
