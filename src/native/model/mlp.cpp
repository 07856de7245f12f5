#include "model/mlp.h"

#include "model/activation.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// inner [rows, width] = act(gate) * up, of which each row lies `stride` values after the one before.
void gate_up(Activation activation, const char* gate, const char* up, Dtype dtype, int rows, int width, int stride, void* inner) {
    Workspace workspace;
    float *gates = workspace.take<float>(width), *ups = workspace.take<float>(width);
    void* activated = workspace.take<char>(size_t(width) * item_bytes(dtype));
    for (int row = 0; row < rows; row++) {
        const size_t at = size_t(row) * stride * item_bytes(dtype);
        activate(activation, gate + at, dtype, width, activated);
        read_row(activated, dtype, 0, width, gates);
        read_row(up + at, dtype, 0, width, ups);
        for (int i = 0; i < width; i++) gates[i] *= ups[i];
        write(gates, width, dtype, inner, size_t(row) * width);
    }
}

}  // namespace

void compute(const Mlp& mlp, const void* x, Dtype dtype, int rows, void* out) {
    const int width = mlp.down.columns;
    const size_t bytes = size_t(rows) * width * item_bytes(dtype);
    const bool gated = mlp.first.size() > 1 || mlp.first[0].matrix.rows > width;
    Workspace workspace;
    char *first = workspace.take<char>(2 * bytes), *inner = workspace.take<char>(bytes);
    const bool joined = mlp.first.size() == 1;
    if (joined) project({{mlp.first[0], first}}, x, dtype, rows);
    else project({{mlp.first[0], first}, {mlp.first[1], first + bytes}}, x, dtype, rows);
    const Span read_next = span(mlp.down);
    Pool::instance().announce(&read_next, 1);
    {
        const Timed timed(Part::dense);
        if (!gated) activate(mlp.activation, first, dtype, int64_t(rows) * width, inner);
        else gate_up(mlp.activation, first, first + (joined ? width * item_bytes(dtype) : bytes), dtype, rows, width,
                     joined ? 2 * width : width, inner);
    }
    project({{mlp.down, out}}, inner, dtype, rows);
}

}  // namespace dali
