#include "model/mlp.h"

#include "model/activation.h"
#include "threads/pieces.h"
#include "threads/spent.h"
#include "threads/workspace.h"

namespace dali {

namespace {

// inner [rows, width] = act(gate) * up, of which each row lies `stride` values after the one before.
void gate_up(Activation activation, const char* gate, const char* up, Dtype dtype, int rows, int width, int stride, void* inner) {
    const int64_t pieces = (width + PIECE - 1) / PIECE;  // of a row
    in_pieces(rows * pieces, pieces > 1 ? 1 : rows_of_piece(width), [&](int64_t first, int some) {
        float activated[PIECE], gates[PIECE], ups[PIECE];
        for (int64_t piece = first; piece < first + some; piece++) {
            const int64_t row = piece / pieces, column = piece % pieces * PIECE, at = row * stride + column;
            const int count = int(std::min<int64_t>(PIECE, width - column));
            activate(activation, gate + at * int64_t(item_bytes(dtype)), dtype, count, activated);
            read_row(activated, dtype, 0, count, gates);
            read_at(up, dtype, at, count, ups);
            for (int i = 0; i < count; i++) gates[i] *= ups[i];
            write(gates, count, dtype, inner, size_t(row * width + column));
        }
    });
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
