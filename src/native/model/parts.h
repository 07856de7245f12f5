// The small parts that modules are made of: packed linears, norms, sums.
#pragma once

#include <vector>

#include "layout/activations.h"
#include "layout/format.h"
#include "threads/pool.h"

namespace dali {

struct PackedLinear {
    Matrix matrix;
    const uint8_t* packed;
    int columns;        // unpadded
    const float* bias;  // null if there is none
};

struct Norm {
    const void* weight = nullptr;  // null if there is none
    int width = 0;
    float epsilon = 0;
    Dtype dtype = Dtype::f32;  // of the weight
};

// What its weights take.
Span span(const PackedLinear& linear);

// A linear and where its rows go.
struct Projection {
    const PackedLinear& linear;
    void* out;  // [rows, linear's rows]
};

// Several linears of the same x [rows, columns].
void project(const std::vector<Projection>& projections, const void* x, Dtype dtype, int rows);

// out [values] = norm of x [values], in rows of the norm's width; out may be x.
void normalise(const Norm& norm, const void* x, Dtype dtype, int64_t values, void* out);

// Rounds floats as `dtype` holds them.
void round_to(Dtype dtype, float* values, int count);

// sum [count] = a + b.
void add(const void* a, const void* b, Dtype dtype, int count, void* sum);

// x [count] *= by.
void scale(void* x, float by, Dtype dtype, int count);

// Each row of x [rows, width] *= by [rows].
void scale_rows(void* x, const float* by, Dtype dtype, int rows, int width);

}  // namespace dali
