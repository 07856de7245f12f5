// Root-mean-square norms, with the sums of the CPU's (src/native/ops/norm.cpp), and what goes on from one part of a layer to the next.
#pragma once

#include "panel.cuh"

namespace dali::gpu {

constexpr int BATCH = 8;  // columns that a lane reads before it works on any

// take(column, value) of all `columns` of a row in order, a lane each 32nd; value(column), which only reads, of those before `width`, 0 of
// the others. All lanes take together.
template <class Value, class Take>
DALI_DEVICE void each_column(int width, int columns, Value value, Take take) {
    for (int first = 0; first < columns; first += 32 * BATCH) {
        float values[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            const int column = first + 32 * i + lane_of_warp();
            values[i] = column < width ? value(column) : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + 32 * i < columns) take(first + 32 * i + lane_of_warp(), values[i]);
    }
}

// The sum of a row's squares. Those beyond whole sixteens come one by one, at the end.
struct Squares {
    int width;
    float rest = 0;  // of the lane whose column is among them
    SixteenSums sums{};
    DALI_DEVICE void take(int column, float value) {
        const int whole = width / 16 * 16;
        sums.add_columns(column < whole ? mul(value, value) : 0.0f);
        if (column >= whole && column < width) rest = value;
    }
    // What the norm multiplies by.
    DALI_DEVICE float factor(float epsilon) const {
        float total = sums.total();
        for (int i = width / 16 * 16; i < width; i++) {
            const float value = from_bits(of_lane(bits_of(rest), i % 32));
            total = add(total, mul(value, value));
        }
        return div(1.0f, __fsqrt_rn(add(div(total, __int2float_rn(width)), epsilon)));
    }
};

template <int dtype, class Value>
DALI_DEVICE float norm_factor(int width, float epsilon, Value value) {
    Squares squares{width};
    each_column(width, width, value, [&](int column, float one) { squares.take(column, one); });
    return squares.factor(epsilon);
}

// A value times the norm's factor and weight, each rounded as the model rounds.
template <int dtype>
DALI_DEVICE float normed(float value, float factor, const void* weight, int column) {
    return rounded(mul(rounded(mul(value, factor), dtype), read(weight, dtype, column)), dtype);
}

template <int dtype>
DALI_DEVICE void norm_row(const void* x, int64_t begin, void* out, int64_t to, int width, const NormPart& norm) {
    const auto value = [&](int column) { return read(x, dtype, begin + column); };
    const float factor = norm_factor<dtype>(width, norm.epsilon, value);
    each_column(width, width, [&](int column) { return normed<dtype>(value(column), factor, norm.weight, column); },
                [&](int column, float one) {
                    if (column < width) write(out, dtype, to + column, one);
                });
}

// A warp a row.
DALI_KERNEL rms_norm(DALI_CALL(NormCall) call) {
    const int64_t row = warp_of_launch();
    if (row >= call.rows) return;
    by_dtype(call.dtype, [&](auto dtype) {
        norm_row<dtype.value>(call.x, row * call.width, call.out, row * call.width, call.width, {call.weight, call.epsilon});
    });
}

template <int dtype>
DALI_DEVICE void add_norm_row(const AddNormCall& call, int64_t row) {
    const int width = call.width;
    const int64_t from = (call.from ? call.from[row] : row) * int64_t(width), to = row * width;
    const auto part = [&](int column) { return read(call.part, dtype, from + column); };
    const float before = call.part && call.before.weight ? norm_factor<dtype>(width, call.before.epsilon, part) : 0.0f;
    const auto sum = [&](int column) {
        const float residual = read(call.residual, dtype, from + column);
        if (!call.part) return residual;
        float added = part(column);
        if (call.before.weight) added = normed<dtype>(added, before, call.before.weight, column);
        if (call.scale != 1.0f) added = rounded(mul(added, call.scale), dtype);
        return rounded(add(residual, added), dtype);
    };
    void* kept = call.after.weight ? call.sum ? call.sum : call.out : nullptr;  // where a lane finds its sums again
    float after = 0;
    if (call.after.weight) {
        Squares squares{width};
        each_column(width, width, sum, [&](int column, float value) {
            if (kept && column < width) write(kept, dtype, to + column, value);
            squares.take(column, value);
        });
        after = squares.factor(call.after.epsilon);
    }
    each_column(width, is_wanted(call.panel) ? call.panel.columns : width, [&](int column) {
        const float value = kept ? read(kept, dtype, to + column) : sum(column);
        return call.after.weight ? normed<dtype>(value, after, call.after.weight, column) : value;
    }, [&](int column, float value) {
        if (column < width) {
            if (call.sum && !call.after.weight) write(call.sum, dtype, to + column, value);
            if (call.out) write(call.out, dtype, to + column, value);
        }
        if (column / GROUP < call.panel.columns / GROUP) put_group(call.panel, row, column / GROUP, value);
    });
}

// A warp a row.
DALI_KERNEL add_norm(DALI_CALL(AddNormCall) call) {
    const int64_t row = warp_of_launch();
    if (row >= call.rows) return;
    by_dtype(call.dtype, [&](auto dtype) { add_norm_row<dtype.value>(call, row); });
}

}  // namespace dali::gpu
