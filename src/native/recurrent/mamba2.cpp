#include "recurrent/mamba2.h"

#include "ops/norm.h"
#include "threads/pool.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

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
        gated_rms_norm(found, {projected, dtype, columns}, module.norm, rows, inner, module.group, module.epsilon, found);
        write(found, rows * inner, dtype, gated, 0);
    }
    project({{module.out, out}}, gated, dtype, rows);
}

}  // namespace dali
