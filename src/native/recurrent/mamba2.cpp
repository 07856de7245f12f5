#include "recurrent/mamba2.h"

#include <algorithm>
#include <cmath>

#include "kernels/variants.h"
#include "lanes/floats.h"
#include "threads/pool.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

constexpr int FEW = 1 << 16;  // values that take less than waking threads

// What the scan gave for a row, in place: times silu of the gate, each group over its root mean square, times the norm's weight.
void gate_row(const Mamba2& module, const void* gates, Dtype dtype, float* values) {
    const Variant& variant = current_variant();
    const int inner = module.scan.heads * module.scan.width, group = module.group;
    Workspace workspace;
    float *gate = workspace.take<float>(padded(inner)), *weight = workspace.take<float>(inner);
    read_row(gates, dtype, 0, inner, gate);
    std::fill(gate + inner, gate + padded(inner), 0.0f);
    variant.silu(gate, padded(inner));
    variant.multiply(values, gate, inner);
    for (int first = 0; first < inner; first += group)
        variant.scale(values + first, 1.0f / std::sqrt(variant.sum_of_squares(values + first, group) / float(group) + module.epsilon), group);
    read_row(module.norm.at, module.norm.dtype, 0, inner, weight);
    variant.multiply(values, weight, inner);
}

void read_next(const PackedLinear& linear) {
    const Span next = span(linear);
    Pool::instance().announce(&next, 1);
}

}  // namespace

void announce(const Mamba2& module) { read_next(module.in); }

void mix(const Mamba2& module, const void* x, Dtype dtype, int rows, const States& states, void* out) {
    const SelectiveScan& scan_of = module.scan;
    const int inner = scan_of.heads * scan_of.width, channels = module.convolution.channels, columns = module.in.matrix.rows;
    const int64_t group = int64_t(scan_of.groups) * scan_of.state;
    const size_t item = item_bytes(dtype);
    Workspace workspace;
    char* projected = workspace.take<char>(size_t(rows) * columns * item);
    char* mixed = workspace.take<char>(size_t(rows) * channels * item);
    float* found = workspace.take<float>(size_t(rows) * inner);
    char* gated = workspace.take<char>(size_t(rows) * inner * item);
    project({{module.in, projected}}, x, dtype, rows);
    read_next(module.out);
    {
        const Timed timed(Part::attention);
        convolve(module.convolution, {{projected + inner * item, columns, channels}}, dtype, states.at(0), dtype, mixed);
        const StridedRows all{mixed, dtype, channels};
        const auto part = [&](int64_t column) { return StridedRows{all.row(0, column), dtype, channels}; };
        const StridedRows steps{projected + (inner + channels) * item, dtype, columns};
        scan(scan_of, {all, part(inner), part(inner + group), steps}, states.at(1), found);
        const auto finish = [&](int row) {
            gate_row(module, projected + size_t(row) * columns * item, dtype, found + size_t(row) * inner);
            write(found + size_t(row) * inner, inner, dtype, gated, size_t(row) * inner);
        };
        if (rows * inner < FEW) {
            for (int row = 0; row < rows; row++) finish(row);
        } else {
            Phase phase(rows);
            Pool::instance().run([&] { phase.run([&](int row, int) { finish(row); }); });
        }
    }
    project({{module.out, out}}, gated, dtype, rows);
}

}  // namespace dali
