// All experts of one layer's step that the accelerator computes: their inputs, then gate, up and activation, then down; and the sum of
// each token's choices. What a layout fixes is fixed when these are compiled:
//   GATE, UP, DOWN: formats; ACTIVATION; GATED, BIASED: 0 or 1; PASSES: blocks of 8 tokens that share a reading of the weights.
// With one pass there are registers for many readings at once, which decoding lives by; a prefill has tokens for four.
#pragma once

#include "tiles.cuh"

namespace dali::gpu {

DALI_DEVICE float bias_of(const uint8_t* record, int64_t at, int row) { return reinterpret_cast<const float*>(record + at)[row]; }

DALI_DEVICE const uint8_t* record_of(const Work& work, int expert) { return work.records ? work.records[expert] : work.few_records[expert]; }
DALI_DEVICE int begin_of(const Work& work, int expert) { return work.records ? work.begin[expert] : work.few_begin[expert]; }
DALI_DEVICE int pair_at(const Work& work, int place) { return work.records ? work.pairs[place] : work.few_pairs[place]; }

// Fills the panel that gate and up read.
DALI_KERNEL gather(DALI_CALL(GatherCall) call) { fill_panel<UP>(call); }

// A strip's rows of gate's and up's products after the activation; 0 below the matrix.
DALI_DEVICE float inner_value(const ExpertsCall& call, const uint8_t* record, int row, float gate, float up) {
    if (row >= call.intermediate) return 0.0f;
    if (BIASED) {
        if (GATED) gate = add(gate, bias_of(record, call.gate_bias, row));
        up = add(up, bias_of(record, call.up_bias, row));
    }
    return activate<ACTIVATION, GATED>(gate, up, call.alpha, call.limit);
}

// Four rows' values of one token, of each of the lanes that differ in their bits 2 to 4: a group of down's input.
DALI_DEVICE void put_inner(const Panel& panel, int64_t pair, int strip, const float (&value)[4], bool there) {
    const int lane = lane_of_warp(), column = strip * STRIP_ROWS + first_row_of(lane);
    if (!is_quantized(DOWN)) {
        if (there)
            for (int r = 0; r < 4; r++) panel.values[pair * panel.columns + column + r] = value[r];
        return;
    }
    uint32_t most = 0;
    for (int r = 0; r < 4; r++) {
        const uint32_t bits = bits_of(value[r]) & 0x7FFFFFFFu;
        most = bits > most ? bits : most;
    }
    for (int mask = 4; mask < 32; mask <<= 1) {
        const uint32_t other = of_lane_xor(most, mask);
        most = other > most ? other : most;
    }
    uint32_t quants = 0;
    int sum = 0;
    float scale = from_bits(0x7FC00000u);  // as in quantize_group
    if (most < 0x7F800000u) {
        const float largest = from_bits(most);
        float factor = div(127.0f, largest);
        if (bits_of(factor) == 0x7F800000u) factor = 0.0f;
        scale = to_half_precision(div(largest, 127.0f));
        for (int r = 0; r < 4; r++) {
            const int quant = __float2int_rn(mul(value[r], factor));
            sum += quant;
            quants |= uint32_t(quant & 255) << (8 * r);
        }
    }
    if (lane / 16) sum *= 65536;  // the second half's
    for (int mask = 4; mask < 32; mask <<= 1) sum += int(of_lane_xor(uint32_t(sum), mask));
    if (!there) return;
    *reinterpret_cast<uint32_t*>(panel.quants + pair * panel.columns + column) = quants;
    if (lane < 4) {
        panel.scales[pair * (panel.columns / GROUP) + strip] = scale;
        panel.sums[pair * (panel.columns / GROUP) + strip] = sums_of_halves(sum);
    }
}

template <int passes>
DALI_DEVICE void inner_strip(const ExpertsCall& call, const uint8_t* record, int strip, int first, int end) {
    const auto token = [&](int i) { return first + i < end ? pair_at(call.work, first + i) / call.top_k : -1; };
    Sums<passes> gate{}, up{};
    if (GATED) multiply_strip<GATE>(record, call.gate, strip, call.outer, token, gate);
    multiply_strip<UP>(record, call.up, strip, call.outer, token, up);
    const int lane = lane_of_warp(), row = strip * STRIP_ROWS + first_row_of(lane);
#pragma unroll
    for (int p = 0; p < passes; p++)
        for (int i = 0; i < 2; i++) {
            float value[4];
            for (int r = 0; r < 4; r++) value[r] = inner_value(call, record, row + r, gate.of[p][r][i], up.of[p][r][i]);
            const int pair = first + p * PASS + 2 * (lane % 4) + i;
            put_inner(call.inner, pair, strip, value, pair < end);
        }
}

DALI_DEVICE void inner_rows(const ExpertsCall& call, const uint8_t* record, int strip, int first, int end) {
    const auto token = [&](int i) { return first + i < end ? pair_at(call.work, first + i) / call.top_k : -1; };
    float gate[PASS] = {}, up[PASS];
    if (GATED) multiply_rows<GATE>(record, call.gate, strip, call.outer, token, gate);
    multiply_rows<UP>(record, call.up, strip, call.outer, token, up);
    const int column = strip * STRIP_ROWS + lane_of_warp();
    for (int i = 0; i < PASS && first + i < end; i++) {
        const float value = inner_value(call, record, column, gate[i], up[i]);
        if (is_quantized(DOWN)) quantize_group(call.inner, first + i, strip, value);
        else call.inner.values[int64_t(first + i) * call.inner.columns + column] = value;
    }
}

// Fills `inner`: a warp a strip of an expert, that is, a group of down's input.
DALI_KERNEL inner(DALI_CALL(ExpertsCall) call) {
    const int strips = call.inner.columns / GROUP;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.work.active) * strips) return;
    const int expert = int(warp / strips), strip = int(warp % strips);
    const uint8_t* record = record_of(call.work, expert);
    const int end = begin_of(call.work, expert + 1);
    int first = begin_of(call.work, expert);
    if (strip * STRIP_ROWS >= call.intermediate) {  // down's padding
        for (; first < end; first++) {
            if (is_quantized(DOWN)) quantize_group(call.inner, first, strip, 0.0f);
            else call.inner.values[int64_t(first) * call.inner.columns + strip * GROUP + lane_of_warp()] = 0.0f;
        }
        return;
    }
    if (!is_quantized(UP)) {
        for (; first < end; first += PASS) inner_rows(call, record, strip, first, end);
        return;
    }
    for (; first < end; first += PASSES * PASS) inner_strip<PASSES>(call, record, strip, first, end);
}

template <int passes>
DALI_DEVICE void down_strip(const ExpertsCall& call, const uint8_t* record, int strip, int first, int end) {
    Sums<passes> sums{};
    multiply_strip<DOWN>(record, call.down, strip, call.inner, [&](int i) { return first + i < end ? first + i : -1; }, sums);
    const int lane = lane_of_warp(), row = strip * STRIP_ROWS + first_row_of(lane);
#pragma unroll
    for (int p = 0; p < passes; p++)
        for (int i = 0; i < 2; i++) {
            const int pair = first + p * PASS + 2 * (lane % 4) + i;
            if (pair >= end) continue;
            float* to = call.rows + int64_t(pair_at(call.work, pair)) * call.hidden;
            for (int r = 0; r < 4 && row + r < call.hidden; r++)
                to[row + r] = BIASED ? add(sums.of[p][r][i], bias_of(record, call.down_bias, row + r)) : sums.of[p][r][i];
        }
}

DALI_DEVICE void down_rows(const ExpertsCall& call, const uint8_t* record, int strip, int first, int end) {
    float sums[PASS];
    multiply_rows<DOWN>(record, call.down, strip, call.inner, [&](int i) { return first + i < end ? first + i : -1; }, sums);
    const int row = strip * STRIP_ROWS + lane_of_warp();
    if (row >= call.hidden) return;
    for (int i = 0; i < PASS && first + i < end; i++)
        call.rows[int64_t(pair_at(call.work, first + i)) * call.hidden + row] =
            BIASED ? add(sums[i], bias_of(record, call.down_bias, row)) : sums[i];
}

// Fills `rows`: a warp a strip of an expert.
DALI_KERNEL down(DALI_CALL(ExpertsCall) call) {
    const int strips = (call.hidden + STRIP_ROWS - 1) / STRIP_ROWS;
    const int64_t warp = warp_of_launch();
    if (warp >= int64_t(call.work.active) * strips) return;
    const int expert = int(warp / strips), strip = int(warp % strips);
    const uint8_t* record = record_of(call.work, expert);
    const int end = begin_of(call.work, expert + 1);
    int first = begin_of(call.work, expert);
    if (!is_quantized(DOWN)) {
        for (; first < end; first += PASS) down_rows(call, record, strip, first, end);
        return;
    }
    for (; first < end; first += PASSES * PASS) down_strip<PASSES>(call, record, strip, first, end);
}

}  // namespace dali::gpu
