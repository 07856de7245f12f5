// A root-mean-square norm, with the sums of the CPU's (src/native/ops/norm.cpp): 16 of them side by side, then their halves.
#pragma once

#include "arithmetic.cuh"
#include "calls.h"

namespace dali::gpu {

// A warp a row.
DALI_KERNEL rms_norm(DALI_CALL(NormCall) call) {
    const int64_t row = warp_of_launch();
    if (row >= call.rows) return;
    const int lane = lane_of_warp(), whole = call.width / 16 * 16;
    const int64_t begin = row * call.width;
    float total = 0;  // lanes 16 on: the same as 16 before
    for (int i = lane % 16; i < whole; i += 16) {
        const float value = read(call.x, call.dtype, begin + i);
        total = add(total, mul(value, value));
    }
    for (int half = 8; half; half >>= 1) total = add(total, from_bits(of_lane_xor(bits_of(total), half)));
    for (int i = whole; i < call.width; i++) {
        const float value = read(call.x, call.dtype, begin + i);
        total = add(total, mul(value, value));
    }
    const float by = div(1.0f, __fsqrt_rn(add(div(total, __int2float_rn(call.width)), call.epsilon)));
    for (int i = lane; i < call.width; i += 32) {
        const float value = rounded(mul(read(call.x, call.dtype, begin + i), by), call.dtype);  // as the model rounds
        write(call.out, call.dtype, begin + i, mul(value, read(call.weight, call.dtype, i)));
    }
}

}  // namespace dali::gpu
